// Has llama.cpp make a context of a GGUF's metadata alone, without its weights, and prints what it logs of caches.
//
// kv-oracle MODEL CONTEXT PARALLEL TYPE_K TYPE_V UNIFIED UBATCH
//
// Ends with "made" when all caches are made. llama.cpp's errors go to stderr. Built by tools/kv_oracle.
#include "gguf.h"
#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

static void hear(ggml_log_level level, const char * text, void *) {
    if (strstr(text, "enumerating backends")) {
        // What follows, making the graph, adds no cache, and some models need their weights for it.
        puts("made");
        _Exit(0);
    }
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    } else if (strstr(text, " MiB") && strstr(text, " size = ") && !strstr(text, "buffer size")) {
        fputs(text, stdout);
    }
}

static ggml_type type_named(const char * name) {
    for (int type = 0; type < GGML_TYPE_COUNT; type++) {
        const char * known = ggml_type_name((ggml_type) type);
        if (known && !strcmp(known, name)) {
            return (ggml_type) type;
        }
    }
    fprintf(stderr, "no type %s\n", name);
    exit(2);
}

int main(int argc, char ** argv) {
    if (argc != 8) {
        fputs("usage: kv-oracle MODEL CONTEXT PARALLEL TYPE_K TYPE_V UNIFIED UBATCH\n", stderr);
        return 2;
    }
    // What was said is there even if llama.cpp aborts, and no debugger is started then.
    setenv("GGML_NO_BACKTRACE", "1", 1);
    setvbuf(stdout, nullptr, _IONBF, 0);
    llama_log_set(hear, nullptr);
    llama_backend_init();
    gguf_context * metadata = gguf_init_from_file(argv[1], gguf_init_params{true, nullptr});
    if (!metadata) {
        return 1;
    }
    llama_model_params how = llama_model_default_params();
    how.no_alloc = true;
    // Without, the tensors of layers for further tokens would be skipped, which a model without a file cannot do.
    how.load_mtp = true;
    llama_model * model = llama_model_init_from_user(metadata, nullptr, nullptr, how);
    if (!model) {
        return 1;
    }
    llama_context_params wanted = llama_context_default_params();
    wanted.n_ctx = atoi(argv[2]);
    wanted.n_seq_max = atoi(argv[3]);
    wanted.type_k = type_named(argv[4]);
    wanted.type_v = type_named(argv[5]);
    wanted.kv_unified = atoi(argv[6]);
    wanted.n_ubatch = atoi(argv[7]);
    wanted.swa_full = false;
    wanted.n_threads = 1;
    llama_context * context = llama_init_from_model(model, wanted);
    if (!context) {
        return 1;
    }
    puts("made");
    llama_free(context);
    llama_model_free(model);
    gguf_free(metadata);
}
