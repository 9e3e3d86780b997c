"""`hbf kv`: KV spill, simulated and measured."""

from hbf_fuse.cli.common import new_app
from hbf_fuse.cli.kv.ceiling import ceiling
from hbf_fuse.cli.kv.info import info
from hbf_fuse.cli.kv.replay import replay
from hbf_fuse.cli.kv.sim import sim
from hbf_fuse.cli.kv.solve import solve

app = new_app(
    help="KV spill: decode with a context longer than DRAM holds.\n\n"
    "Example: [bold]hbf kv sim model.gguf --context 32768 --resident 4096 --mbps 4000[/bold]",
    no_args_is_help=True,
)
for command in (info, ceiling, sim, solve, replay):
    app.command()(command)
