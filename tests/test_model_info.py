"""`hbf model info`: one screen for every kind of GGUF, and figures that follow from its tensors."""

import json
import math
from pathlib import Path

import geometries
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from splitting import split_gguf
from typer.testing import CliRunner

from hbf_fuse.cli.app import app_of
from hbf_fuse.gguf import GgufFile, Tensor, weights
from hbf_fuse.models import summary

LAYER = {"attn_q.weight": 100, "attn_norm.weight": 10, "ffn_gate.weight": 200}


def tensor(name, nbytes, *shape):
    return Tensor(name, shape or (nbytes,), "Q8_0", 0, nbytes)


def model(sizes, architecture="llama", **fields):
    metadata = {f"{architecture}.{key}": value for key, value in fields.items()}
    tensors = [each if isinstance(each, Tensor) else tensor(*each) for each in sizes]
    return GgufFile(Path("m.gguf"), 0, 3, {"general.architecture": architecture, **metadata}, tensors, 0)


def layer(number, sizes=LAYER):
    return [(f"blk.{number}.{name}", nbytes) for name, nbytes in sizes.items()]


def info(*arguments):
    said = CliRunner().invoke(app_of(), ["model", "info", *map(str, arguments)])
    assert said.exit_code == 0, said.output
    return said.output


def screen(path):
    """The lines of the screen, which must be one."""
    lines = info(path).splitlines()
    assert len(lines) < 40 and max(map(len, lines)) <= 100
    return lines


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("token_embd.weight", "embedding"),
        ("per_layer_token_embd.weight", "embedding"),
        ("token_embd_norm.weight", "output_and_norms"),
        ("output.weight", "output_and_norms"),
        ("output_norm.weight", "output_and_norms"),
        ("rope_freqs.weight", "output_and_norms"),
        ("blk.0.attn_output.weight", "attention"),
        ("blk.0.attn_kv_a_mqa.weight", "attention"),
        ("blk.0.attn_q_norm.weight", "output_and_norms"),
        ("enc.blk.0.attn_q.weight", "attention"),
        ("v.blk.0.attn_q.weight", "attention"),
        ("blk.0.indexer.proj.weight", "attention"),
        ("blk.0.ssm_in.weight", "recurrent"),
        ("blk.0.time_mix_key.weight", "recurrent"),
        ("blk.0.channel_mix_key.weight", "dense_ffn"),
        ("blk.0.ffn_down.weight", "dense_ffn"),
        ("blk.0.ffn_norm.weight", "output_and_norms"),
        ("blk.0.ffn_gate_inp.weight", "dense_ffn"),
        ("blk.0.ffn_up_shexp.weight", "dense_ffn"),
        ("blk.0.exp_probs_b.bias", "dense_ffn"),
        ("blk.0.ffn_up_exps.weight", "experts"),
        ("blk.0.ffn_down_exps.bias", "experts"),
        ("blk.0.ffn_up_chexps.weight", "experts"),
        ("blk.0.ffn_up.3.weight", "experts"),
        ("mm.0.weight", "other"),
    ],
)
def test_a_tensors_name_says_what_it_is_for(name, group):
    assert weights.bytes_by_group(model([(name, 7)])) == {group: 7}


def test_a_token_reads_one_row_of_embeddings_unless_they_are_the_output():
    embeddings = tensor("token_embd.weight", 64_000, 64, 1000)
    rest = [*layer(0), *layer(1)]
    untied = model([embeddings, *rest, ("output.weight", 50_000)])
    assert weights.active_bytes(untied) == 2 * 310 + 50_000 + 64
    assert not weights.is_tied(untied)
    tied = model([embeddings, *rest])
    assert weights.active_bytes(tied) == 2 * 310 + 64_000
    assert weights.is_tied(tied)
    for_each_layer = tensor("per_layer_token_embd.weight", 3000, 30, 100)
    assert weights.active_bytes(model([embeddings, for_each_layer])) == 64_000 + 30


def test_a_token_reads_the_experts_that_it_uses_and_all_else():
    experts = tensor("blk.0.ffn_up_exps.weight", 8000, 10, 100, 8)
    shared = ("blk.0.ffn_up_shexp.weight", 700)
    known = model([experts, shared, ("output.weight", 5)], expert_count=8, expert_used_count=2)
    assert weights.active_bytes(known) == 2000 + 700 + 5
    assert weights.experts(known) == weights.Experts(8, 2, 8000, 2000)
    unknown = model([experts, shared])
    assert weights.experts(unknown) == weights.Experts(8, None, 8000, 8000)
    assert weights.experts(model([shared])) is None


def test_experts_in_tensors_of_their_own_are_counted_alike():
    old = [(f"blk.0.ffn_up.{number}.weight", 1000) for number in range(8)]
    assert weights.experts(model(old, expert_count=8, expert_used_count=2)) == weights.Experts(
        8, 2, 8000, 2000
    )


@pytest.mark.parametrize("used", [0, -1, 10**9, "2", [2, 2], True])
def test_a_number_of_experts_that_cannot_be_counts_as_unknown(used):
    experts = tensor("blk.0.ffn_up_exps.weight", 8000, 10, 100, 8)
    assert weights.experts(model([experts], expert_used_count=used)).used_bytes == 8000


def test_plain_decode_reads_no_layers_for_further_tokens_and_no_encoder():
    further = [*layer(2), ("blk.2.nextn.eh_proj.weight", 40)]
    known = model([*layer(0), *layer(1), *further, ("enc.blk.0.attn_q.weight", 9), ("output.weight", 1)])
    assert weights.active_bytes(known) == 2 * 310 + 1
    assert weights.bytes_by_group(known)["prediction"] == 350


def test_the_screen_has_what_the_model_is_made_of(tiny_model):
    lines = screen(tiny_model)
    for words in ("qwen2", "12; context", "Q4_K", "attention", "dense FFN", "KV cache in f16", "at 128k"):
        assert any(words in line for line in lines), words
    assert not any("experts  " in line or "blk." in line for line in lines)
    assert "blk.0.attn_q.weight" in info(tiny_model, "--tensors")


def test_json_has_the_figures_of_the_screen(tiny_model):
    known = json.loads(info(tiny_model, "--json"))
    size = known["size_bytes"]
    assert size == tiny_model.stat().st_size and len(known["tensors"]) == known["tensor_count"]
    assert sum(known["bytes_by_type"].values()) == known["tensor_bytes"]
    assert sum(group["share"] for group in known["groups"].values()) == pytest.approx(1)
    assert known["parameters"] == sum(math.prod(each["shape"]) for each in known["tensors"])
    assert known["kv_f16"][0] == {"context": 8192, "bytes": 8192 * known["kv_bytes_per_token_f16"]}
    slow, fast = known["tiers"]
    assert (slow["mbps"], fast["mbps"]) == (500, 1.6e6)
    assert slow["staging_seconds"] == pytest.approx(size / 500e6)
    assert slow["decode_ceiling_tps"] == pytest.approx(500e6 / known["active_bytes_per_token"])
    assert fast["decode_ceiling_tps"] == pytest.approx(3200 * slow["decode_ceiling_tps"])


def test_any_part_of_a_split_model_is_the_whole_model(tiny_model, tmp_path):
    parts = split_gguf(tiny_model, tmp_path, 3)
    known, whole = summary.describe(parts[1]), summary.describe(tiny_model)
    assert known["size_bytes"] == sum(part.stat().st_size for part in parts)
    assert [part["file"] for part in known["parts"]] == [part.name for part in parts]
    for same in ("bytes_by_type", "groups", "active_bytes_per_token", "kv_f16", "parameters"):
        assert known[same] == whole[same]
    assert any("in 3 files" in line for line in screen(parts[2]))


def written(path, kind, names, **fields):
    """A GGUF of tensors with 32 numbers each."""
    import numpy as np

    writer = GGUFWriter(path, kind)
    for key, value in fields.items():
        writer.add_string(key.replace("__", "."), value)
    for name in names:
        writer.add_tensor(name, np.zeros(32, np.float32), raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_that_is_not_a_language_model_shows_what_it_can(tmp_path):
    path = written(tmp_path / "mmproj.gguf", "clip", ["v.blk.0.attn_q.weight"], general__type="mmproj")
    said = "\n".join(screen(path))
    assert "does not decode: it has no token embeddings" in said
    assert "unknown: " in said and "is not a language model but an mmproj" in said
    assert "500 MB/s" in said and "tokens/s" not in said and "attention" in said
    assert json.loads(info(path, "--json"))["active_bytes_per_token"] is None


def test_a_model_that_does_not_decode_says_why(tmp_path):
    said = "\n".join(screen(written(tmp_path / "bert.gguf", "bert", ["token_embd.weight"])))
    assert "does not decode: it reads a text at once" in said and "no cache: it reads a text" in said


def test_an_architecture_that_is_unknown_is_said_to_be_a_guess(tmp_path):
    path = written(tmp_path / "new.gguf", "made-up", ["token_embd.weight"])
    said = "\n".join(screen(path))
    assert "has no made-up.block_count" in said and "tokens/s" in said


@pytest.mark.parametrize("name", sorted(geometries.GEOMETRIES))
def test_every_architecture_fits_on_the_screen(name):
    with geometries.files(name) as (path,):
        known = summary.describe(path)
        lines = screen(path)
    assert known["kv_f16"] or known["kv_remark"]
    assert any(known["architecture"] in line for line in lines)


def test_many_types_and_a_long_name_still_fit_on_one_screen(tmp_path):
    names = [f"blk.{number}.{part}" for number in range(3) for part in ("attn_q.x", "ffn_up.x", "ssm_in.x")]
    names += ["token_embd.weight", "output.weight", "blk.1.ffn_up_exps.weight", "blk.2.nextn.x", "else"]
    path = written(tmp_path / f"{'long' * 50}.gguf", "mystery", names, general__name="\x1b[2J" + "n" * 500)
    lines = screen(path)
    assert "\x1b" not in "".join(lines) and "prediction (MTP)" in "".join(lines)


def test_many_types_become_few_rows():
    from hbf_fuse.cli.info import _few

    sizes = {f"Q{number}": 100 - number for number in range(30)}
    few = _few(sizes)
    assert len(few) == 8 and sum(few.values()) == sum(sizes.values()) and few["23 others"]
