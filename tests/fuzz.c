/* fuzz.c - any bytes as a model and as a vocabulary; whole files with changed parts; sessions; texts.
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -DLIBFUZZER -o fuzz tests/fuzz.c -lm && ./fuzz SEED_FOLDER
 *   cc -g -O1 -fsanitize=address,undefined -o fuzz tests/fuzz.c -lm && ./fuzz [-t SECONDS] [-s SEED] [-r ROUND] FILE ...
 * The second form changes the files by itself, and works in the current folder. On a crash the bytes of a model are in
 * crash.bin, for `./fuzz -1 crash.bin`; any round runs again with -r and the same seed and files. */
#define _DEFAULT_SOURCE
#include <stdint.h>
#include <stdlib.h>
static size_t taken; /* bytes asked for while one input is read */
static void *counted(size_t n) { taken += n; return calloc(1, n); }
#define GLA_CALLOC(n) counted(n)
#define GLA_FREE(p) free(p)
#define RUN_NO_MAIN
#include "../run.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
const char *__asan_default_options(void), *__ubsan_default_options(void); /* the sanitizers report, then abort */
const char *__asan_default_options(void) { return "allocator_may_return_null=1:allow_user_segv_handler=0:abort_on_error=1"; }
const char *__ubsan_default_options(void) { return "abort_on_error=1:print_stacktrace=1"; }

static void insist(int ok, const char *what, const char *err) {
    if (ok) return;
    fprintf(stderr, "%s: %s\n", what, err);
    abort();
}

/* Every token has a piece, and any text has ids. */
static void use_vocabulary(const Tokenizer *t) {
    static const char text[] = "Once upon \xE2\x82\xAC a<|im_end|><s>e\xCC\x81 12345\r\n  \xFF\xED\xA0\x80";
    char piece[16], err[GLA_ERR];
    int32_t ids[8];
    for (int32_t id = -1; id <= t->n && id < 500; id++) tokenizer_piece(t, id, id & 7, piece, sizeof piece), tokenizer_is_end(t, id);
    if (t->n) for (int flags = 0; flags < 4; flags++) tokenizer_encode(t, text, sizeof text - 1, flags, ids, 8, err);
}

static void use_model(GlaModel *m) {
    char err[GLA_ERR];
    GlaState *s, *copy;
    GlaSampler p;
    GlaInfo info;
    int32_t ids[5];
    gla_info(m, &info);
    if (info.state_bytes > 1 << 24 || info.token_weights > 1 << 22) return; /* honest, but slow */
    gla_sampler_init(&p, m, 1);
    if (gla_state_new(&s, m, &(GlaSettings){.ctx = 8, .batch = 3, .threads = 1, .mtp = m->mtp.layer ? 4 : 0}, err)) return;
    for (int i = 0; i < 5; i++) ids[i] = (int32_t)(next_random(&p.rng) % (uint64_t)info.vocab_size);
    insist(gla_eval(s, ids, 5, NULL, 0, err) == GLA_OK, "eval", err);
    if (!gla_state_clone(&copy, s, err)) {
        gla_generate(copy, &p, ids, 1, &(GlaGenerate){.steps = 3, .stops = (const char *const[]){"a"}, .n_stops = 1}, NULL, err);
        gla_state_free(copy);
    }
    int32_t id = gla_sample(&p, s), drafts[3];
    for (int i = mtp_draft(s, id, drafts, 3); i-- > 0;) insist(drafts[i] >= 0 && drafts[i] < info.vocab_size, "draft", "an id outside the vocabulary");
    insist(id >= 0 && id < info.vocab_size, "sample", "an id outside the vocabulary");
    gla_state_free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    char err[GLA_ERR] = "";
    GlaModel *m;
    taken = 0;
    int code = gla_open_memory(&m, data, n, err);
    insist(taken < 400 * n + (1 << 20), "memory beyond what the file justifies", err);
    if (!code) use_vocabulary(m->vocab), use_model(m), gla_close(m);
    else insist(code < 0 && *err && !strchr(err, '\n'), "no sentence", err);
    Gguf g = {.map = {data, n, 0}};
    Tokenizer *t;
    taken = 0;
    code = gguf_read(&g, err);
    if (!code) code = tokenizer_new(&t, &g, err);
    insist(taken < 400 * n + (1 << 20), "memory beyond what the file justifies", err);
    if (!code) use_vocabulary(t), tokenizer_free(t);
    gguf_close(&g);
    return 0;
}

#ifndef LIBFUZZER
static uint64_t rng = 1;
static size_t below(size_t n) { return n ? (size_t)(next_random(&rng) % n) : 0; }

typedef struct { uint8_t *p; size_t n; } Sample;
static Sample slurp(const char *path) {
    Sample in = {NULL, 0};
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END)) { fprintf(stderr, "%s: cannot read\n", path); exit(2); }
    in.n = (size_t)ftell(f), in.p = malloc(in.n + 1);
    rewind(f);
    if (!in.p || fread(in.p, 1, in.n, f) != in.n) { fprintf(stderr, "%s: cannot read\n", path); exit(2); }
    fclose(f);
    return in;
}

static const uint64_t extremes[] = {
    0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000, 4096,
    65535, 65536, 100000, 1 << 20, 1 << 24, (1 << 24) + 1, 1 << 28, 0x7fffffff, 0x80000000, 0xffffffff,
    (uint64_t)1 << 32, ((uint64_t)1 << 32) + 1, ((uint64_t)1 << 61) + 1, ((uint64_t)1 << 62) - 1,
    INT64_MAX, (uint64_t)1 << 63, UINT64_MAX - 31, UINT64_MAX};
static const uint32_t odd_floats[] = { /* zeros, infinities, NaN, the least, the greatest, ones, powers */
    0, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000, 1, 0x80000001, 0x7f7fffff, 0xff7fffff,
    0x3f800000, 0xbf800000, 0x00800000, 0x33800000, 0x4f000000, 0x5f000000, 0xcf000000, 0x501502f9};
enum { N_EXTREMES = sizeof extremes / sizeof *extremes, N_ODD_FLOATS = sizeof odd_floats / sizeof *odd_floats };

/* A few edits where they hurt most: numbers of the header set to extremes, bytes changed, stretches moved, the end cut off. */
static size_t change(uint8_t *p, size_t n, size_t header) {
    for (size_t k = 1 + below(4); k && n; k--) {
        size_t at = below(below(8) ? (header < n ? header : n) : n), from, len;
        uint64_t v = extremes[below(N_EXTREMES)];
        switch (below(8)) {
        case 0: case 1: p[at] ^= (uint8_t)(1 << below(8)); break;
        case 2: p[at] = (uint8_t)next_random(&rng); break;
        case 3: if (n - at >= 4) memcpy(p + at, &v, 4); break;
        case 4: if (n - at >= 8) memcpy(p + at, &v, 8); break;
        case 5: p[at] = (uint8_t)(p[at] + (below(2) ? 1 : -1)); break;
        case 6: from = below(n), len = below(24); if (from + len < n && at + len < n) memmove(p + at, p + from, len); break;
        case 7: if (!below(20)) n = at; break;
        }
    }
    return n;
}

/* ---- whole files whose parts are changed: lengths and offsets stay right, so that the change is found
 * behind the reader, where the models are bound, the vocabularies built and the sessions loaded ---- */

typedef struct Piece { struct Piece *next; } Piece;
static Piece *pieces; /* memory of this round */
static void *piece(size_t n) {
    Piece *p = calloc(1, sizeof *p + n);
    if (!p) abort();
    p->next = pieces, pieces = p;
    return p + 1;
}
static void free_pieces(void) {
    for (Piece *p; (p = pieces); free(p)) pieces = p->next;
}

typedef struct { const uint8_t *p; size_t n; } Bytes;
typedef struct {
    Bytes name, value; /* as they are in the file */
    uint32_t type;
    int lies;          /* its bytes are not what it says: it is not changed again */
} FileKey;
typedef struct {
    Bytes name, data;
    uint32_t type, n_dims;
    uint64_t ne[4], offset;
    int moved; /* lies at this offset, not behind the one before */
} FileTensor;
typedef struct {
    FileKey *keys;
    FileTensor *tensors;
    size_t n_keys, n_tensors;
    uint64_t claims[2]; /* tensors and keys as the header has them */
} Parts;
typedef struct { uint8_t *p; size_t n, cap; } Out;

static void put(Out *o, const void *p, size_t n) {
    if (o->n + n > o->cap) {
        uint8_t *more = piece(o->cap = 2 * (o->n + n) + 64);
        if (o->n) memcpy(more, o->p, o->n);
        o->p = more;
    }
    if (n) memcpy(o->p + o->n, p, n);
    o->n += n;
}
static void put32(Out *o, uint32_t v) { put(o, &v, 4); }
static void put64(Out *o, uint64_t v) { put(o, &v, 8); }
static void put_text(Out *o, Bytes text) { put64(o, text.n), put(o, text.p, text.n); }
static void put_zeros(Out *o) {
    while (o->n % 32) put(o, "", 1);
}

static size_t value_bytes(const GgufKey *k) {
    const size_t head = k->type == GGUF_ARR ? 12 : 0;
    const uint8_t *p = k->value.p;
    uint64_t len;
    if (k->value.type != GGUF_STR) return head + (size_t)k->value.n * gguf_width[k->value.type];
    for (uint64_t i = 0; i < k->value.n; i++) memcpy(&len, p, 8), p += 8 + len;
    return head + (size_t)(p - k->value.p);
}

static Parts parts_of(const Sample *in) {
    Gguf g = {.map = {in->p, in->n, 0}};
    char err[GLA_ERR];
    insist(gguf_read(&g, err) == GLA_OK, "a seed", err);
    Parts f = {NULL, NULL, g.n_keys, g.n_tensors, {g.n_tensors, g.n_keys}};
    f.keys = piece((f.n_keys + 4) * sizeof *f.keys); /* room for those that are added */
    f.tensors = piece((f.n_tensors + 1) * sizeof *f.tensors);
    for (size_t i = 0; i < f.n_keys; i++) {
        const GgufKey *k = &g.keys[i];
        const uint8_t *value = k->value.p - (k->type == GGUF_ARR ? 12 : 0);
        const Bytes name = {(const uint8_t *)k->key.s, k->key.n};
        f.keys[i] = (FileKey){name, {value, value_bytes(k)}, (uint32_t)k->type, 0};
    }
    for (size_t i = 0; i < f.n_tensors; i++) {
        const GgufTensor *t = &g.tensors[i];
        FileTensor *to = &f.tensors[i];
        *to = (FileTensor){.type = (uint32_t)t->type, .n_dims = 4};
        to->name = (Bytes){(const uint8_t *)t->name.s, t->name.n};
        to->data = (Bytes){t->data, t->n_bytes};
        for (int d = 0; d < 4; d++) to->ne[d] = (uint64_t)t->ne[d];
        while (to->n_dims > 1 && to->ne[to->n_dims - 1] == 1) to->n_dims--;
    }
    gguf_close(&g);
    return f;
}

static Bytes odd_text(void) {
    static const char *const odd[] = {
        "", "\xff", "\xc2", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\x1b[31m", "\xc2\x9b", "<0x-1>", "<0xFF>", "<0x00>", "<|im_end|>",
        "</s>", " ", "  ", "\n", "{", "\"", "}", "[", "\\", "\xe2\x82", "\xe2\x96\x81", "\xc4\xa0", "%s%n", "true", "1", "\\u",
        "e\xcc\x81", "\xcc\x81\xcc\xa7", "\xea\xb0\x80", "\xe1\x84\x80\xe1\x85\xa1", "\x01", "\x7f", "ab ab", "a b c", "never",
        "first", "always", "prepend", "gpt2", "llama", "rwkv", "gemma4", "qwen2", "llama-bpe", "{% for m in messages %}", "{{ m.content }}",
        "{%- if x -%}", "| trim", "<|im_start|>", "<start_of_turn>", "[INST]", "<|start_header_id|>", "enable_thinking", "<think>\n"};
    Out o = {0};
    if (!below(12)) {
        const uint8_t c = (uint8_t)next_random(&rng);
        for (size_t n = below(3000); n; n--) put(&o, &c, 1);
    } else for (size_t k = 1 + below(4); k; k--) {
        const char *s = odd[below(sizeof odd / sizeof *odd)];
        put(&o, s, *s ? strlen(s) : 1); /* the empty one is a zero byte */
    }
    return (Bytes){o.p, o.n};
}
static Bytes odd_string(void) { /* with its length */
    Out o = {0};
    put_text(&o, below(40) ? odd_text() : (Bytes){NULL, 0});
    return (Bytes){o.p, o.n};
}

static uint8_t *own(Bytes *b) { /* bytes that may be written */
    uint8_t *p = piece(b->n);
    memcpy(p, b->p, b->n);
    b->p = p;
    return p;
}

/* One number of the type at p: an extreme, a neighbour, the half, the double. */
static void odd_number(uint8_t *p, uint32_t type) {
    if (type >= N_GGUF || !gguf_width[type]) return;
    uint64_t v = 0;
    double d = (double)as_float(odd_floats[below(N_ODD_FLOATS)]);
    float f = (float)d;
    if (type == GGUF_F32) memcpy(p, &f, 4);
    else if (type == GGUF_F64) memcpy(p, &d, 8);
    else {
        memcpy(&v, p, gguf_width[type]);
        switch (below(8)) {
        case 0: v *= 2; break;
        case 1: v /= 2; break;
        case 2: v += 1 + below(3); break;
        case 3: v -= 1 + below(3); break;
        case 4: v = next_random(&rng); break;
        default: v = extremes[below(N_EXTREMES)];
        }
        memcpy(p, &v, gguf_width[type]);
    }
}

/* Strings: some replaced, some twice, the end left out. */
static void change_strings(FileKey *k, uint64_t n) {
    const uint8_t *s = k->value.p + 12, *before = NULL;
    const uint64_t m = below(4) ? n : below(n + 1), few = below(20) ? 1 + n / 3 : 1;
    Out o = {0};
    put32(&o, GGUF_STR), put64(&o, m);
    for (uint64_t i = 0; i < m; i++) {
        uint64_t len;
        memcpy(&len, s, 8);
        Bytes is = {s, 8 + len};
        if (!below(few) && before && !below(3)) is = (Bytes){before, (size_t)(s - before)};
        else if (!below(few)) is = odd_string();
        put(&o, is.p, is.n);
        before = s, s += 8 + len;
    }
    k->value = (Bytes){o.p, o.n};
}

static void change_array(FileKey *k) {
    uint32_t type;
    uint64_t n;
    memcpy(&type, k->value.p, 4), memcpy(&n, k->value.p + 4, 8);
    const size_t kind = below(10);
    if (kind < 2 || type >= N_GGUF || !n) { /* what it claims to be */
        uint8_t *p = own(&k->value);
        k->lies = 1;
        if (kind) odd_number(p + 4, GGUF_U64);
        else type = (uint32_t)below(14), memcpy(p, &type, 4);
    } else if (type == GGUF_STR) change_strings(k, n);
    else if (kind == 2) { /* shorter or longer, honestly */
        const uint64_t m = below(3) ? below(n) : n + 1 + below(4);
        const size_t width = gguf_width[type];
        Out o = {0};
        put32(&o, type), put64(&o, m), put(&o, k->value.p + 12, (m < n ? m : n) * width);
        while (o.n < 12 + m * width) put(&o, "", 1);
        k->value = (Bytes){o.p, o.n};
    } else {
        uint8_t *p = own(&k->value);
        for (size_t i = 1 + below(below(3) ? 4 : n); i; i--)
            odd_number(p + 12 + below(n) * gguf_width[type], type);
    }
}

/* A scalar becomes an array with an entry for some layers, or another type. */
static void change_form(FileKey *k) {
    static const uint32_t types[] = {0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12};
    Out o = {0};
    if (below(2)) {
        const uint64_t m = below(6);
        put32(&o, k->type), put64(&o, m);
        for (uint64_t i = 0; i < m; i++) {
            put(&o, k->value.p, k->value.n);
            if (!below(3)) odd_number(o.p + o.n - k->value.n, k->type);
        }
        k->type = GGUF_ARR;
    } else {
        uint64_t v = 0;
        memcpy(&v, k->value.p, k->value.n);
        k->type = types[below(sizeof types / sizeof *types)];
        put(&o, &v, gguf_width[k->type]);
        if (below(2)) odd_number(o.p, k->type);
    }
    k->value = (Bytes){o.p, o.n};
}

/* Keys that few files have. */
static void add_key(Parts *f) {
    static const struct { const char *name; uint32_t type; } rare[] = {
        {"tokenizer.gla.nfc", GGUF_BOOL}, {"tokenizer.gla.ignore_merges", GGUF_BOOL}, {"tokenizer.gla.byte_fallback", GGUF_BOOL},
        {"tokenizer.gla.fuse_unk", GGUF_BOOL}, {"tokenizer.gla.space_prefix", GGUF_STR}, {"tokenizer.gla.end_token_ids", GGUF_ARR},
        {"tokenizer.gla.lstrip", GGUF_ARR}, {"tokenizer.gla.rstrip", GGUF_ARR}, {"tokenizer.gla.single_word", GGUF_ARR},
        {"tokenizer.gla.normalized", GGUF_ARR}, {"tokenizer.gla.added", GGUF_ARR},
        {"tokenizer.ggml.add_space_prefix", GGUF_BOOL}, {"tokenizer.ggml.add_bos_token", GGUF_BOOL}, {"tokenizer.ggml.pre", GGUF_STR},
        {"tokenizer.ggml.add_eos_token", GGUF_BOOL}, {"tokenizer.ggml.bos_token_id", GGUF_U32}, {"tokenizer.ggml.model", GGUF_STR},
        {"tokenizer.ggml.unknown_token_id", GGUF_U32}, {"tokenizer.chat_template", GGUF_STR}, {"general.alignment", GGUF_U32},
        {"general.sampling.temp", GGUF_F32}, {"general.sampling.top_k", GGUF_I32}, {"general.name", GGUF_STR}};
    const size_t i = below(sizeof rare / sizeof *rare);
    const uint32_t type = rare[i].type;
    Out o = {0};
    if (type == GGUF_STR) put_text(&o, odd_text());
    else if (type == GGUF_ARR) {
        const uint64_t n = below(8);
        put32(&o, GGUF_U32), put64(&o, n);
        for (uint64_t j = 0; j < n; j++) {
            const uint64_t id = below(4) ? below(300) : extremes[below(N_EXTREMES)];
            put32(&o, (uint32_t)id);
        }
    } else {
        put(&o, "\0\0\0\0\0\0\0", gguf_width[type]);
        odd_number(o.p, type);
        if (type == GGUF_BOOL) *o.p = (uint8_t)below(2);
    }
    const Bytes name = {(const uint8_t *)rare[i].name, strlen(rare[i].name)};
    size_t at = 0;
    while (at < f->n_keys && (f->keys[at].name.n != name.n || memcmp(f->keys[at].name.p, name.p, name.n)))
        at++; /* in the place of the file's own */
    f->keys[at] = (FileKey){name, {o.p, o.n}, type, 0};
    f->n_keys += at == f->n_keys;
    f->claims[1] = f->n_keys;
}

static void change_key(Parts *f) {
    FileKey *k = &f->keys[below(f->n_keys)];
    for (int i = 0; i < 20 && k->name.n > 10 && !memcmp(k->name.p, "tokenizer.", 10) && below(3); i++)
        k = &f->keys[below(f->n_keys)];
    if (k->lies) return;
    switch (below(13)) {
    case 0: k->type = (uint32_t)below(14), k->lies = 1; break; /* without the bytes for it */
    case 1: if (gguf_width[k->type]) change_form(k); break;
    case 2: *k = f->keys[--f->n_keys], f->claims[1] = f->n_keys; break;
    case 3: if (!below(4)) k->name = odd_text(); break;
    case 4: if (!below(4)) k->name = f->keys[below(f->n_keys)].name; break;
    case 5: case 6: add_key(f); break;
    default:
        if (k->type == GGUF_ARR) change_array(k);
        else if (k->type == GGUF_STR) k->value = odd_string();
        else odd_number(own(&k->value), k->type);
    }
}

static void change_weights(FileTensor *t) {
    uint8_t *p = own(&t->data);
    const uint32_t v = odd_floats[below(N_ODD_FLOATS)];
    for (size_t i = below(3) ? 1 + below(4) : t->data.n / 4; i; i--)
        if (t->type == F32) memcpy(p + below(t->data.n / 4) * 4, &v, 4);
        else if (below(2)) p[below(t->data.n)] = (uint8_t)next_random(&rng);
        else memcpy(p + below(t->data.n / 2) * 2, (const uint8_t *)&v + 2, 2);
}

static void change_tensor(Parts *f) {
    static const uint32_t usual[] = {0, 1, 2, 8, 10, 12, 14, 30};
    FileTensor *t = &f->tensors[below(f->n_tensors)], *other = &f->tensors[below(f->n_tensors)];
    const FileTensor was = *t;
    const uint32_t d = (uint32_t)below(3);
    switch (below(12)) {
    case 0: case 1:
        odd_number((uint8_t *)&t->ne[d], GGUF_U64);
        if (d >= t->n_dims) t->n_dims = d + 1;
        break;
    case 2: t->ne[0] = was.ne[1], t->ne[1] = was.ne[0], t->n_dims += t->n_dims < 2; break;
    case 3: t->ne[d] *= 2, t->ne[d + 1] = (was.ne[d + 1] + 1) / 2, t->n_dims += t->n_dims < d + 2; break;
    case 4: t->type = below(2) ? (uint32_t)below(45) : usual[below(8)]; break;
    case 5: t->moved = 1, t->offset = below(2) ? below(2000) * 32 : extremes[below(N_EXTREMES)]; break;
    case 6: t->name = other->name, other->name = was.name; break;
    case 7: if (!below(3)) *t = f->tensors[--f->n_tensors], f->claims[0] = f->n_tensors; break;
    case 8: if (!below(6)) t->name = other->name; break;
    case 9: case 10: if (t->data.n >= 8) change_weights(t); break;
    case 11: t->n_dims = (uint32_t)below(6); break;
    }
}

static Out whole(const Parts *f) {
    Out o = {0};
    uint64_t at = 0;
    put(&o, "GGUF\3\0\0", 8), put64(&o, f->claims[0]), put64(&o, f->claims[1]);
    for (const FileKey *k = f->keys; k < f->keys + f->n_keys; k++)
        put_text(&o, k->name), put32(&o, k->type), put(&o, k->value.p, k->value.n);
    for (const FileTensor *t = f->tensors; t < f->tensors + f->n_tensors; t++) {
        put_text(&o, t->name), put32(&o, t->n_dims);
        for (uint32_t d = 0; d < t->n_dims; d++) put64(&o, d < 4 ? t->ne[d] : 1);
        put32(&o, t->type), put64(&o, t->moved ? t->offset : at);
        at += (t->data.n + 31) / 32 * 32;
    }
    put_zeros(&o);
    for (const FileTensor *t = f->tensors; t < f->tensors + f->n_tensors; t++) {
        put(&o, t->data.p, t->data.n);
        put_zeros(&o);
    }
    return o;
}

static Out change_parts(const Sample *seed) {
    Parts f = parts_of(seed);
    for (size_t i = 1 + below(3); i; i--) {
        if (f.n_keys && (below(2) || !f.n_tensors)) change_key(&f);
        else if (f.n_tensors) change_tensor(&f);
        if (!below(60)) f.claims[below(2)] = extremes[below(N_EXTREMES)];
    }
    Out o = whole(&f);
    if (!below(25)) o.n = below(o.n);
    return o;
}

/* ---- other uses of a model that opens: kinds of state, a chat, JSON ---- */

static int nobody(void *user, int32_t id, const char *text, size_t n) {
    (void)user, (void)id;
    for (size_t i = 0; i < n; i++) insist(text[i] || 1, "text", "cannot be read");
    return 0;
}

static void talk(GlaState *s, GlaSampler *p) {
    GlaChatSettings how = {.loop_tokens = 8, .snapshot_bytes = 1 << 20};
    how.system = below(2) ? "sys" : NULL;
    how.think = (int)below(3) - 1;
    how.think_budget = (int64_t)below(3);
    GlaGenerate some = {.steps = 4, .json = !below(4), .emit = nobody, .draft = (int)below(2)};
    char err[GLA_ERR];
    GlaTurn turn;
    GlaChat *c;
    if (gla_chat_new(&c, s, &how, err)) return;
    gla_chat_say(c, p, "hi \xff", 4, &some, &turn, err);
    gla_chat_say(c, p, "<|im_end|>", 10, &some, &turn, err);
    gla_chat_go(c, p, -1, err);
    gla_chat_retry(c, p, &some, &turn, err);
    gla_chat_forget(c, (int64_t)below(20), &(GlaGenerate){0}, err);
    gla_chat_free(c);
}

static void use_more(GlaModel *m) {
    char err[GLA_ERR];
    GlaSampler p;
    GlaState *s;
    GlaInfo info;
    int32_t ids[40];
    const int n = (int)(1 + below(39));
    gla_info(m, &info);
    if (info.state_bytes > 1 << 22 || info.token_weights > 1 << 20) return;
    gla_sampler_init(&p, m, below(100));
    if (below(2)) {
        float *of[] = {&p.temperature, &p.top_p, &p.min_p, &p.repeat_penalty, &p.presence_penalty};
        for (size_t i = 0; i < sizeof of / sizeof *of; i++)
            *of[i] = as_float(odd_floats[below(N_ODD_FLOATS)]);
        p.top_k = (int)extremes[below(N_EXTREMES)];
    }
    GlaSettings how = {.threads = 1, .kv = (int)below(4), .fast = (int)below(2), .draft = (int)below(12)};
    how.ctx = (int)(1 + below(100));
    how.batch = (int)(1 + below(40));
    how.mtp = m->mtp.layer ? (int)below(60) : 0;
    if (gla_state_new(&s, m, &how, err)) return;
    s->pace.always = (int)below(2);
    for (int i = 0; i < n; i++) ids[i] = (int32_t)below((size_t)info.vocab_size);
    if (below(2)) talk(s, &p);
    else {
        GlaGenerate some = {.steps = 6, .json = (int)below(2), .emit = nobody, .draft = (int)below(2)};
        gla_generate(s, &p, ids, n, &some, NULL, err);
    }
    gla_state_free(s);
}

/* ---- sessions: heads and contents of any kind, under a checksum that is right ---- */

static SessionHead odd_head(const GlaState *s) {
    const GlaModel *m = s->m;
    SessionHead h = {.version = SESSION_VERSION, .model = fingerprint(m)};
    h.has_sampler = below(8) != 0;
    memcpy(h.magic, session_magic, 8);
    h.pos = (int64_t)below(41);
    if (!below(4)) h.pos = (int64_t)extremes[below(N_EXTREMES)];
    else if (!m->kv_floats && below(3)) h.pos = (int64_t)(next_random(&rng) >> (11 + below(50)));
    h.n_ids = below(3) && h.pos >= 0 && h.pos < 100000 ? (uint64_t)h.pos : 0;
    if (!below(20)) h.n_ids = extremes[below(N_EXTREMES)];
    h.fixed_floats = m->fixed_floats;
    h.vocab_size = (uint64_t)m->config.vocab_size;
    h.kv_bytes = below(30) ? m->kv_bytes[s->kv_type] : extremes[below(N_EXTREMES)];
    h.kv_type = m->kv_floats ? (uint32_t)s->kv_type : 0;
    if (!below(30)) h.kv_type = (uint32_t)extremes[below(N_EXTREMES)];
    h.n_keys = KEYS;
    gla_sampler_init(&h.sampler, m, 1);
    uint8_t *sampler = (uint8_t *)&h.sampler;
    for (size_t i = below(30); i; i--) {
        uint32_t v = odd_floats[below(N_ODD_FLOATS)];
        if (below(2)) v = (uint32_t)extremes[below(N_EXTREMES)];
        memcpy(sampler + below(sizeof h.sampler / 4) * 4, &v, 4);
    }
    return h;
}

static void write_odd(Stream *t, void *p, size_t n) { /* in the place of what the state holds */
    (void)p;
    for (size_t i = 0; i < n; i += 4) {
        uint32_t v = 0x3f000000 + (uint32_t)below(1 << 24);
        if (!below(3)) v = below(40) ? (uint32_t)next_random(&rng) : odd_floats[below(N_ODD_FLOATS)];
        stream_write(t, &v, n - i < 4 ? n - i : 4);
    }
}

static void odd_session(GlaState *s, const char *path) {
    SessionHead h = odd_head(s);
    FILE *f = fopen(path, "wb");
    insist(f != NULL, path, "cannot write");
    Stream t = {f, HASH_SEED, 0, 0};
    stream_write(&t, &h, sizeof h);
    for (uint64_t i = h.n_ids <= 100000 ? h.n_ids : below(100); i; i--) {
        int32_t id = (int32_t)below((size_t)s->m->config.vocab_size);
        if (!below(2000)) id = (int32_t)extremes[below(N_EXTREMES)];
        session_write_ids(&t, &id, 1);
    }
    const int64_t was = s->pos;
    s->pos = h.pos >= 0 && h.pos <= 40 ? h.pos : 0;
    session_body(s, &t, write_odd);
    s->pos = was;
    stream_write(&t, &(uint64_t){t.sum}, sizeof t.sum);
    const long n = ftell(f);
    if (!below(6)) { /* damaged: here the checksum has to tell */
        fseek(f, (long)below((size_t)n), SEEK_SET);
        fputc((int)below(256), f);
    }
    fclose(f);
#ifdef HAVE_POSIX
    if (!below(8)) insist(truncate(path, (off_t)below((size_t)n)) == 0, path, "cannot be cut");
#endif
}

static void use_session(GlaState *s, const char *path) {
    char err[GLA_ERR];
    GlaSampler p;
    GlaGenerate some = {.steps = 4, .ignore_end = 1, .emit = nobody, .json = !below(6), .draft = (int)below(2)};
    gla_sampler_init(&p, s->m, 1);
    if (gla_state_load(s, &p, path, err)) {
        insist(*err && !strchr(err, '\n'), "no sentence", err);
        return;
    }
    int32_t ids[2] = {0, 0}, *all = malloc(100000 * sizeof *all);
    gla_session_ids(s->m, path, all, 100000, err);
    free(all);
    gla_generate(s, &p, ids, 2, &some, NULL, err);
    for (int i = 0; i < 5; i++) {
        const int32_t id = gla_sample(&p, s);
        insist(id >= 0 && id < s->m->config.vocab_size, "sample", "an id outside the vocabulary");
        gla_sampler_note(&p, id);
    }
    gla_state_save(s, &p, NULL, path, err);
}

static void continue_chat(GlaState *s, const char *path) {
    char err[GLA_ERR];
    GlaChat *c;
    GlaTurn turn;
    GlaSampler p;
    GlaGenerate some = {.steps = 3, .emit = nobody};
    const GlaChatSettings how = {.think = -1, .loop_tokens = 8, .snapshot_bytes = 1 << 20};
    gla_sampler_init(&p, s->m, 1);
    if (gla_chat_new(&c, s, &how, err)) return;
    if (!gla_chat_load(c, &p, path, err)) {
        gla_chat_say(c, &p, "hi", 2, &some, &turn, err);
        gla_chat_go(c, &p, -1, err);
        gla_chat_forget(c, 5, &(GlaGenerate){0}, err);
    }
    gla_chat_free(c);
}

/* A model of the seeds as it is, with a session that is not. */
static void session_round(const Sample *seed) {
    static const char path[] = "session.gla";
    char err[GLA_ERR];
    GlaModel *m;
    GlaState *s;
    const GlaSettings how = {.ctx = 40, .batch = 7, .threads = 1, .kv = (int)below(4), .draft = (int)below(12)};
    if (gla_open_memory(&m, seed->p, seed->n, err)) return; /* a vocabulary */
    if (m->fixed_floats < 1 << 20 && !gla_state_new(&s, m, &how, err)) {
        s->pace.always = (int)below(2);
        odd_session(s, path);
        use_session(s, path);
        gla_state_reset(s);
        if (gla_n_tokens(m)) odd_session(s, path), continue_chat(s, path);
        gla_state_free(s);
    }
    gla_close(m);
}

/* ---- texts: any bytes have ids, in time, and every id a piece ---- */

static void text_round(const Sample *seed) {
    Gguf g = {.map = {seed->p, seed->n, 0}};
    char err[GLA_ERR], piece_of[64];
    Tokenizer *t;
    if (gguf_read(&g, err)) return;
    if (tokenizer_new(&t, &g, err)) {
        gguf_close(&g);
        return;
    }
    for (int round = 0; round < 20 && t->n; round++) {
        static const uint32_t from[] = {0, 0x300, 0x1100, 0xac00};
        static const uint32_t span[] = {0x110000, 0x70, 0x100, 0x2ba4};
        Out text = {0};
        for (size_t n = 1 + below(below(4) ? 60 : 3000); text.n < n;) {
            const size_t kind = below(8);
            char letter[4];
            Bytes odd = odd_text();
            if (kind < 4) {
                const uint32_t c = from[kind] + (uint32_t)below(span[kind]);
                put(&text, letter, utf8_write(letter, c));
            } else put(&text, odd.p, odd.n);
        }
        char *exact = malloc(text.n);
        const size_t cap = below(text.n * 4);
        int32_t *ids = malloc(cap * sizeof *ids + 1);
        memcpy(exact, text.p, text.n);
        const int64_t n = tokenizer_encode(t, exact, text.n, (int)below(4), ids, cap, err);
        insist(n >= 0, "encode", err);
        for (size_t i = 0; i < cap && i < (size_t)n; i++) {
            insist(ids[i] >= 0 && ids[i] < t->n, "encode", "an id outside the vocabulary");
            tokenizer_piece(t, ids[i], (int)below(8), piece_of, below(sizeof piece_of));
        }
        free(exact), free(ids);
    }
    tokenizer_free(t);
    gguf_close(&g);
}

static uint8_t *current;
static size_t current_n;
static long current_round;
static void save_input(int sig) { /* not strictly allowed in a handler, but the program is at its end anyway */
    FILE *f = fopen("crash.bin", "wb");
    if (f) fwrite(current, 1, current_n, f), fclose(f);
    fprintf(stderr, "round %ld: -r %ld repeats it\n", current_round, current_round);
    signal(sig, SIG_DFL), raise(sig);
}

/* The bytes in a block of their own, so that one byte too far is seen; 1 if it was a model. */
static int try_bytes(const uint8_t *p, size_t n) {
    char err[GLA_ERR];
    GlaModel *m;
    uint8_t *exact = malloc(n ? n : 1);
    if (n) memcpy(exact, p, n);
    current = exact, current_n = n;
    LLVMFuzzerTestOneInput(exact, n);
    const int opened = !gla_open_memory(&m, exact, n, err);
    if (opened) use_more(m), gla_close(m);
    current_n = 0;
    free(exact);
    return opened;
}

/* What a round does follows from the seed and its number alone. */
static int one_round(const Sample *seeds, size_t n, uint64_t seed) {
    rng = seed * 0x9e3779b97f4a7c15u + (uint64_t)current_round;
    for (int i = 0; i < 3; i++) next_random(&rng);
    const Sample *from = &seeds[below(n)];
    const size_t kind = below(10);
    int opened = 0;
    if (kind < 2) {
        uint8_t *p = piece(from->n);
        memcpy(p, from->p, from->n);
        opened = try_bytes(p, change(p, from->n, 12000));
    } else if (kind < 8) {
        Out o = change_parts(from);
        opened = try_bytes(o.p, o.n);
    } else if (kind == 8) session_round(from);
    else text_round(from);
    free_pieces();
    return opened;
}

int main(int argc, char **argv) {
    enum { MAX = 128 };
    Sample seeds[MAX];
    uint64_t seed = 1;
    int n = 0, once = 0;
    double seconds = 10, slowest = 0;
    long rounds = 0, opened = 0, only = -1, slow = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-t") && i + 1 < argc) seconds = atof(argv[++i]);
        else if (!strcmp(argv[i], "-s") && i + 1 < argc) seed = strtoull(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "-r") && i + 1 < argc) only = atol(argv[++i]);
        else if (!strcmp(argv[i], "-1")) once = 1;
        else if (n < MAX) seeds[n++] = slurp(argv[i]);
    }
    if (!n) {
        fprintf(stderr, "usage: fuzz [-t SECONDS] [-s SEED] [-r ROUND] [-1] FILE ...\n");
        return 2;
    }
    signal(SIGABRT, save_input), signal(SIGSEGV, save_input), signal(SIGFPE, save_input);
    signal(SIGALRM, save_input);
    const long last = once ? n : only >= 0 ? 1 : LONG_MAX;
    for (double end = now_s() + seconds; now_s() < end && rounds < last; rounds++) {
#ifdef HAVE_POSIX
        alarm(20); /* a hang is a crash */
#endif
        const double start = now_s();
        current_round = only >= 0 ? only : rounds;
        if (once) opened += try_bytes(seeds[rounds].p, seeds[rounds].n);
        else opened += one_round(seeds, (size_t)n, seed);
        if (now_s() - start > slowest) slowest = now_s() - start, slow = current_round;
    }
    printf("fuzz: %ld rounds, %ld models opened, the slowest, %ld, took %.3f s\n", rounds, opened,
           slow, slowest);
    for (int i = 0; i < n; i++) free(seeds[i].p);
    remove("session.gla");
    return 0;
}
#endif
