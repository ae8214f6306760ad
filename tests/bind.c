/* bind.c - a file that loads runs: models of every architecture with tensors and keys dropped,
 * changed and added.
 *   build/bind [-v] [-a] [-k NAME] [FILE ...]     from the top of the repository
 *   FILE: models to begin with instead of the table's;  -a: every change instead of a sample;
 *   -k: models whose name holds this
 *
 * Whatever is done to a model, it is refused with one sentence, or it runs: the same bits in any
 * split of the text and on two threads. Many a change needs others before a file loads (a wider key
 * needs wider matrices), and where these go wrong is no sentence but arithmetic. So each change is
 * tried twice: alone, and with every other tensor in the shape that the program then asks for.
 *
 *   1 checking            2 drafts: a file as a list   3 completing a draft
 *   4 models to begin with   5 running                 6 changes             7 main */
#define _GNU_SOURCE
#include <stddef.h>
#define RUN_NO_MAIN
#define THREAD_WORK 0 /* the second thread has something to do in a small model, too */
#include "../run.c"
#include <signal.h>

/* ---- 1. checking ----------------------------------------------------------------------------- */

static int passed, failed, verbose, all;
static char current[400]; /* what is being tried, for a report from a crash */

static void check(int ok, const char *what) {
    if (ok) { passed++; return; }
    failed++;
    printf("FAIL %s: %s\n", current, what);
}

/* One sentence: something printable, on one line, not cut off. */
static int is_sentence(const char *err) {
    size_t n = strlen(err);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)err[i] < 32 || (unsigned char)err[i] == 127) return 0;
    return n > 5 && n < GLA_ERR - 1;
}

static uint64_t rng = 1;
static uint32_t rnd(uint32_t n) { return (uint32_t)(next_random(&rng) >> 33) % n; }
static int sampled(uint32_t n) { return all || rnd(n) == 0; } /* one in n */

static void *must(void *p) {
    if (p) return p;
    printf("no memory for the test\n");
    exit(1);
}

/* ---- 2. drafts ------------------------------------------------------------------------------- */

enum { MOST_KEYS = 96, MOST_TENSORS = 320, VALUE = 400 };

typedef struct {
    char name[96];
    int type;
    size_t n;               /* bytes of the value, after the type */
    uint8_t value[VALUE];
} DraftKey;

typedef struct {
    char name[64];
    int type;
    uint64_t ne[4];
    const uint8_t *data;    /* NULL: made up from the name when it is written */
    size_t n_bytes;
} DraftTensor;

typedef struct {
    char name[64], arch[32];
    int n_keys, n_tensors;
    DraftKey keys[MOST_KEYS];
    DraftTensor tensors[MOST_TENSORS];
} Draft;

static DraftKey *find_key(Draft *d, const char *name) {
    for (int i = 0; i < d->n_keys; i++)
        if (!strcmp(d->keys[i].name, name)) return &d->keys[i];
    return NULL;
}
static DraftTensor *find_tensor(Draft *d, const char *name) {
    for (int i = 0; i < d->n_tensors; i++)
        if (!strcmp(d->tensors[i].name, name)) return &d->tensors[i];
    return NULL;
}
static DraftKey *put_key(Draft *d, const char *name, int type, const void *value, size_t n) {
    DraftKey *k = find_key(d, name);
    if (!k && d->n_keys == MOST_KEYS) { printf("too many keys\n"); exit(1); }
    if (!k) k = &d->keys[d->n_keys++];
    snprintf(k->name, sizeof k->name, "%s", name);
    k->type = type, k->n = n;
    memcpy(k->value, value, n);
    return k;
}
static void put_string(Draft *d, const char *name, const char *s) {
    uint8_t value[VALUE];
    uint64_t n = strlen(s);
    memcpy(value, &n, 8), memcpy(value + 8, s, n);
    put_key(d, name, GGUF_STR, value, 8 + n);
}
static DraftTensor *put_tensor(Draft *d, const char *name) {
    DraftTensor *t = find_tensor(d, name);
    if (t) return t;
    if (d->n_tensors == MOST_TENSORS) { printf("too many tensors\n"); exit(1); }
    t = &d->tensors[d->n_tensors++];
    *t = (DraftTensor){.type = F32, .ne = {10, 10, 1, 1}}; /* where the file has the choice */
    snprintf(t->name, sizeof t->name, "%s", name);
    return t;
}

static uint64_t elements_of(const DraftTensor *t) {
    return t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
}

/* A key from text: 3, 0.5, 2,0 (a list, one element per layer), or a word. */
static void put_text(Draft *d, const char *name, const char *text) {
    uint8_t value[VALUE];
    char *end;
    double x = strtod(text, &end);
    if (end == text || (*end && *end != ',')) { put_string(d, name, text); return; }
    int real = strpbrk(text, ".ein") != NULL, list = *end == ',', type = real ? GGUF_F32 : GGUF_I32;
    uint64_t n = 0;
    for (const char *p = text;; p = end + 1) {
        x = strtod(p, &end);
        float f = (float)x;
        int32_t i = (int32_t)x;
        memcpy(value + (list ? 12 : 0) + 4 * n++, real ? (void *)&f : (void *)&i, 4);
        if (*end != ',') break;
    }
    if (list) memcpy(value, &(uint32_t){(uint32_t)type}, 4), memcpy(value + 4, &n, 8);
    put_key(d, name, list ? GGUF_ARR : type, value, list ? 12 + 4 * n : 4);
}

/* Where weights lie that keep a model in the range in which every term counts: the first row whose
 * part is in a tensor's name. With none, or an empty one, a matrix keeps its input's size. */
static const struct { const char *part; float low, high; } ranges[] = {
    {"norm.weight", 0.5f, 1.5f}, {"_norm_2.weight", 0.5f, 1.5f}, {"ssm_alpha", 0, 0}, {"ssm_a", -2, -0.1f},
    {"ssm_m_alpha", 0, 0}, {"ssm_m_a", -2, -0.1f}, {"ssm_decay", 0.3f, 0.98f}, {"ssm_f_low", 0.3f, 0.98f},
    {"rope_freqs", 0.3f, 0.98f}, {"ssm_ridge", 0.25f, 1},
};

static void make_up(uint8_t *out, const DraftTensor *t) {
    uint64_t state = hash_bytes(HASH_SEED, t->name, strlen(t->name)), n = elements_of(t);
    size_t width = t->type == F32 ? 4 : t->type == F16 || t->type == BF16 ? 2 : 0;
    float high = t->ne[1] > 1 ? 1.7f / sqrtf((float)t->ne[0]) : 1, low = -high;
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (strstr(t->name, ranges[i].part)) {
            if (ranges[i].low < ranges[i].high) low = ranges[i].low, high = ranges[i].high;
            break;
        }
    for (size_t i = 0; i < t->n_bytes && !width; i++)
        out[i] = (uint8_t)(next_random(&state) >> 40) & 0x3b; /* scales below one */
    for (uint64_t i = 0; i < n && width; i++) {
        float x = low + (high - low) * (float)(next_random(&state) >> 40) * 0x1p-24f;
        uint16_t half = t->type == F16 ? to_f16(x) : (uint16_t)(as_bits(x) >> 16);
        memcpy(out + i * width, width == 4 ? (void *)&x : (void *)&half, width);
    }
}

static uint8_t *bytes;        /* the file of the last draft */
static size_t n_bytes, cap_bytes;
static void put(const void *p, size_t n) {
    if (n_bytes + n > cap_bytes) bytes = must(realloc(bytes, cap_bytes = 2 * (n_bytes + n)));
    if (p) memcpy(bytes + n_bytes, p, n);
    else memset(bytes + n_bytes, 0, n);
    n_bytes += n;
}
static void put_u64(uint64_t x) { put(&x, 8); }
static void put_u32(uint32_t x) { put(&x, 4); }
static void put_name(const char *s) { put_u64(strlen(s)), put(s, strlen(s)); }

/* The draft as a file in `bytes`. with_data 0: the weights stay zero, enough to load it. */
static void write_draft(Draft *d, int with_data) {
    uint64_t at = 0;
    n_bytes = 0;
    put("GGUF", 4), put_u32(3), put_u64((uint64_t)d->n_tensors), put_u64((uint64_t)d->n_keys);
    for (int i = 0; i < d->n_keys; i++) {
        put_name(d->keys[i].name), put_u32((uint32_t)d->keys[i].type);
        put(d->keys[i].value, d->keys[i].n);
    }
    for (int i = 0; i < d->n_tensors; i++) {
        DraftTensor *t = &d->tensors[i];
        uint64_t blocks = elements_of(t) / (uint64_t)types[t->type].elems;
        if (!t->data) t->n_bytes = blocks * (uint64_t)types[t->type].bytes;
        put_name(t->name), put_u32(4), put(t->ne, sizeof t->ne);
        put_u32((uint32_t)t->type), put_u64(at);
        at += round_up(t->n_bytes, 32);
    }
    put(NULL, round_up(n_bytes, 32) - n_bytes);
    for (int i = 0; i < d->n_tensors; i++) {
        DraftTensor *t = &d->tensors[i];
        size_t begin = n_bytes;
        put(t->data, t->n_bytes);
        if (with_data && !t->data) make_up(bytes + begin, t);
        put(NULL, round_up(n_bytes - begin, 32) - (n_bytes - begin));
    }
}

/* A draft of a file, without its vocabulary. The weights stay in the mapping. */
static int read_draft(Draft *d, Gguf *g, const char *path) {
    char err[GLA_ERR];
    memset(d, 0, sizeof *d);
    if (map_file(&g->map, path, err) || gguf_read(g, err)) { printf("%s\n", err); return 0; }
    for (uint64_t i = 0; i < g->n_keys; i++) {
        const GgufKey *k = &g->keys[i];
        char name[96];
        size_t head = k->type == GGUF_ARR ? 12 : 0; /* type and length of a list */
        size_t n = head + (size_t)(k->value.n * gguf_width[k->value.type]);
        const uint8_t *begin = k->value.p - head;
        if (head && k->value.type == GGUF_STR) continue;
        if (k->type == GGUF_STR) n = 8 + (size_t)read_u64(begin);
        snprintf(name, sizeof name, "%.*s", (int)k->key.n, k->key.s);
        if (n <= VALUE && strncmp(name, "tokenizer.", 10)) put_key(d, name, k->type, begin, n);
    }
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)g->tensors[i].name.n, g->tensors[i].name.s);
        DraftTensor *t = put_tensor(d, name);
        t->type = g->tensors[i].type;
        t->data = g->tensors[i].data, t->n_bytes = g->tensors[i].n_bytes;
        memcpy(t->ne, g->tensors[i].ne, sizeof t->ne);
    }
    const DraftKey *arch = find_key(d, "general.architecture");
    if (!arch) return 0;
    snprintf(d->arch, sizeof d->arch, "%.*s", (int)arch->n - 8, (const char *)arch->value + 8);
    const char *slash = strrchr(path, '/');
    snprintf(d->name, sizeof d->name, "%s", slash ? slash + 1 : path);
    return 1;
}

/* ---- 3. completing a draft ------------------------------------------------------------------- */

static int load(Draft *d, int with_data, GlaModel **m, char *err) {
    write_draft(d, with_data);
    return gla_open_memory(m, bytes, n_bytes, err);
}

static void reshape(DraftTensor *t, uint64_t a, uint64_t b, uint64_t c) {
    t->ne[0] = a, t->ne[1] = b, t->ne[2] = c, t->ne[3] = 1, t->data = NULL;
    if (a % (uint64_t)types[t->type].elems) t->type = F32;
}

/* Adds what a refusal says is missing, or gives it the shape that it expects. 0: it is another. */
static int obey(Draft *d, const char *err) {
    char name[64];
    unsigned long long ne[4], n, a, b, c = 1;
    int end = 0;
    if (sscanf(err, "the tensor %63s is missing", name) == 1 && !find_tensor(d, name)) {
        if (d->n_tensors < MOST_TENSORS) put_tensor(d, name);
        return d->n_tensors < MOST_TENSORS;
    }
    if (sscanf(err, "%63s is (%llu, %llu, %llu, %llu), expected (%llu, %llu%n",
               name, ne, ne + 1, ne + 2, ne + 3, &a, &b, &end) == 7)
        sscanf(err + end, ", %llu", &c);
    else if (sscanf(err, "%63s has %llu elements, expected %llu;", name, &n, &a) == 3) b = 1;
    else return 0;
    DraftTensor *t = find_tensor(d, name);
    if (!t || a > 1 << 14 || b > 1 << 14 || c > 64 || a * b * c > 1 << 18) return 0;
    reshape(t, a, b, c);
    return 1;
}

static int complete(Draft *d, char *err) { /* returns what the last try to load it returned */
    for (int n = 0;; n++) {
        GlaModel *m;
        int code = load(d, 0, &m, err);
        if (!code) { /* the block for multi-token prediction is not refused, it is not used */
            snprintf(err, GLA_ERR, "%s", m->mtp.layer ? "" : m->mtp.why_not);
            gla_close(m);
        }
        if (n > 2 * MOST_TENSORS || !obey(d, err)) return code;
    }
}

/* ---- 4. models to begin with ----------------------------------------------------------------- */

/* Two layers, 32 channels, unless the keys say otherwise. Tensors that a model may have: of each
 * layer, or "1:" of layer 1 only, "2:" of the block behind them, "/" of none. Those that it must
 * have follow from refusals. */
#define HEADS4 "mixer.head_count=4 mixer.key_length=8 mixer.value_length=12 "
#define GROUPS2 HEADS4 "mixer.head_count_kv=2 "
#define HYBRID "attention.head_count=0,4 attention.head_count_kv=0,2 " \
               "attention.sliding_window=0,9 rope.freq_base=5000.0 "
#define SSM "ssm.inner_size=48 ssm.state_size=8 ssm.conv_kernel=4 "
#define RESIDUAL "residual_attention.block_size=2 "
#define MTP "block_count=3 nextn_predict_layers=1 "
#define QWEN "attention.head_count=4 attention.head_count_kv=2 attention.key_length=8 "
#define QKV_BIAS "attn_q.bias attn_k.bias attn_v.bias "
static const struct { const char *arch, *keys, *tensors; } seeds[] = {
    {"llama", QWEN "rope.scaling.type=linear rope.scaling.factor=4.0", "/output.weight /rope_freqs.weight " QKV_BIAS},
    {"llama", "attention.head_count=4", "attn_qkv.weight attn_qkv.bias attn_output.bias"},
    {"qwen2", QWEN "rope.scaling.type=yarn rope.scaling.factor=4.0 rope.scaling.original_context_length=64", "/output.weight " QKV_BIAS},
    {"qwen3", QWEN "attention.qk_norm_epsilon=1e-4", "/output.weight"},
    {"gemma3", QWEN "attention.sliding_window=9 attention.sliding_window_pattern=2 rope.freq_base=5000.0", "/rope_freqs.weight"},
    {"qwen35", QWEN "attention.value_length=8 rope.dimension_count=4 full_attention_interval=2 ssm.state_size=8 ssm.group_count=2 "
     "ssm.time_step_rank=4 ssm.inner_size=48 ssm.conv_kernel=4", "/output.weight"},
    {"qwen35", QWEN "rope.dimension_count=4 full_attention_interval=2 ssm.state_size=8 ssm.group_count=2 ssm.time_step_rank=4 ssm.inner_size=48 " MTP,
     "2:nextn.eh_proj.weight 2:nextn.shared_head_norm.weight 2:nextn.embed_tokens.weight 2:nextn.shared_head_head.weight"},
    {"transformer", "attention.head_count=4 attention.head_count_kv=2 attention.sliding_window=9", QKV_BIAS "attn_q_norm.weight"},
    {"transformer", "attention.head_count=2 " RESIDUAL, ""},
    {"forgetting_transformer", "attention.head_count=4 attention.head_count_kv=2 rope.dimension_count=0",
     "attn_forget.weight attn_forget.bias attn_gate.weight attn_q_norm.weight"},
    {"path_attn", "attention.head_count=4 attention.head_count_kv=2 rope.dimension_count=0 mixer.conv_kernel=3 mixer.beta_scale=2.0",
     "ssm_w_a.weight attn_forget.weight attn_forget.bias ssm_beta.bias"},
    {"path_attn", "attention.head_count=4 rope.dimension_count=0 " RESIDUAL, ""},
    {"wall_transformer", "attention.head_count=4 attention.head_count_kv=2 rope.dimension_count=0",
     "attn_fade.bias attn_forget.weight attn_gate.weight attn_q_norm.weight"},
    {"linear_attn", GROUPS2 "mixer.q_norm=sum mixer.k_norm=sum mixer.sum_epsilon=1e-4 mixer.normalizer_epsilon=1e-10",
     "ssm_map_q.weight ssm_map_q.bias ssm_map_k.weight ssm_norm.weight"},
    {"linear_attn", GROUPS2 HYBRID "mixer.feature_map=hedgehog", "0:ssm_map_q.weight 0:ssm_map_q.bias"},
    {"retnet", GROUPS2 "mixer.rope_dimension_count=8 mixer.feature_map=tanh", "attn_gate.weight ssm_norm.weight"},
    {"lightning_attn", HEADS4 HYBRID "mixer.conv_kernel=4", "0:attn_gate.weight 0:ssm_norm.weight"},
    {"simple_gla", GROUPS2 "mixer.conv_kernel=3", "attn_gate.weight ssm_alpha.bias"},
    {"gla", GROUPS2 HYBRID RESIDUAL "mixer.conv_kernel=4 mixer.decay_min=-1.0", "0:ssm_f_a.weight 0:ssm_f_b.bias 0:attn_gate.weight 0:ssm_norm.weight"},
    {"gla", HEADS4 "mixer.feature_map=relu", "ssm_alpha.bias"},
    {"gla", HEADS4 "attention.head_count=0,0,4 attention.head_count_kv=0,0,2 " MTP, "2:nextn.eh_proj.weight 2:attn_qkv.weight"},
    {"hgrn", "mixer.head_count=24 mixer.key_length=1 mixer.value_length=1 mixer.conv_kernel=4", "attn_gate.weight ssm_f_low ssm_norm.weight ssm_conv1d_f.weight"},
    {"hgrn2", HEADS4 HYBRID "mixer.conv_kernel=4", "0:ssm_f_low 0:ssm_norm.weight 0:ssm_conv1d_f.weight"},
    {"lightnet", HEADS4, "ssm_g_a.weight ssm_norm.weight"},
    {"abc", HEADS4 "mixer.slot_count=5 mixer.score_min=-1.0 mixer.score_max=0.5 mixer.rope_dimension_count=8 mixer.conv_kernel=4", "attn_gate.weight"},
    {"gsa", GROUPS2 "mixer.slot_count=7 mixer.conv_kernel=4 mixer.decay_divisor=8.0 mixer.scale=1.0", "ssm_norm.weight"},
    {"gsa", HEADS4 "mixer.slot_count=9 mixer.feature_map=t2r", ""},
    {"delta_net", HEADS4 "mixer.conv_kernel=4 mixer.beta_scale=2.0", "ssm_beta.weight attn_gate.weight ssm_norm.weight"},
    {"delta_net", HEADS4 HYBRID "mixer.q_norm=sum mixer.k_norm=sum mixer.feature_map=elu_plus_one", ""},
    {"gated_deltanet", GROUPS2 "mixer.conv_kernel=4 " RESIDUAL, "ssm_beta.weight attn_gate.weight ssm_norm.weight"},
    {"gated_deltaproduct", GROUPS2 "mixer.writes_per_token=3 mixer.conv_kernel=4", "ssm_alpha.weight ssm_beta.weight attn_gate.weight"},
    {"gated_deltaproduct", GROUPS2 HYBRID "mixer.writes_per_token=2 mixer.conv_kernel=4", "0:ssm_beta.weight"},
    {"mesa_net", "mixer.head_count=4 mixer.key_length=8 mixer.value_length=8 mixer.conv_kernel=4 mixer.solver_steps=6",
     "ssm_alpha.bias ssm_beta.weight ssm_beta.bias attn_gate.weight"},
    {"comba", HEADS4 "mixer.conv_kernel=4", "ssm_beta.weight attn_gate.weight ssm_norm.weight"},
    {"kda", GROUPS2 "mixer.conv_kernel=4 mixer.decay_bound=-5.0", "ssm_f_a.weight ssm_beta.weight ssm_g_a.weight ssm_g_b.bias"},
    {"gdn2", GROUPS2 HYBRID "mixer.conv_kernel=4", "0:ssm_f_a.weight 0:ssm_beta.weight 0:ssm_g_a.weight"},
    {"precond_gated_deltanet", GROUPS2 "mixer.conv_kernel=4 mixer.squash=2.5", "ssm_beta.weight attn_gate.weight"},
    {"precond_kda", GROUPS2 "mixer.conv_kernel=4", "ssm_f_a.weight ssm_beta.weight ssm_g_a.weight"},
    {"mamba", SSM "ssm.time_step_rank=5", "ssm_in.bias ssm_out.bias ssm_conv1d.bias"},
    {"mamba", SSM "ssm.time_step_rank=3 ssm.dt_b_c_rms=1 mixer.dt_b_c_rms_epsilon=1e-3", "ssm_conv1d.bias"},
    {"samba", SSM "ssm.time_step_rank=5 " HYBRID RESIDUAL, "0:ssm_conv1d.bias ffn_norm.weight"},
    {"mamba2", SSM "ssm.time_step_rank=4 ssm.group_count=2 mixer.step_min=0.1 mixer.step_max=0.9", "ssm_in.bias ssm_out.bias ssm_conv1d.bias ssm_norm.weight"},
    {"mamba2", SSM "ssm.time_step_rank=4 mixer.norm_before_gate=1 mixer.skip_per_channel=1 " HYBRID, "0:ssm_norm.weight"},
    {"log_linear_mamba2", SSM "ssm.time_step_rank=4 " RESIDUAL, "ssm_norm.weight ssm_conv1d.bias ffn_norm.weight"},
    {"mamba3", SSM "ssm.time_step_rank=4 ssm.group_count=2 mixer.rope_dimension_count=6 mixer.rate_min=0.1", "ssm_in.bias ssm_norm.weight ssm_out.bias"},
    {"rwkv6", "wkv.head_size=8 rescale_every_n_layers=1", "/token_embd_norm.weight /token_embd_norm.bias /output_norm.bias attn_norm.bias attn_norm_2.bias"},
    {"rwkv6", "wkv.head_size=8 mixer.head_count=2 mixer.value_length=12 " HYBRID, "0:time_mix_lerp_fused.weight"},
    {"rwkv7", "wkv.head_size=8", "0:time_mix_v0.weight attn_norm.bias"},
    {"rwkv7", "wkv.head_size=8 mixer.head_count=2 mixer.value_length=12 mixer.l2_norm_epsilon=1e-6", ""},
};
enum { N_SEEDS = sizeof seeds / sizeof *seeds };

static const char *word(const char **list, char out[96]) { /* the next word of a list, or NULL */
    while (**list == ' ') ++*list;
    size_t n = strcspn(*list, " ");
    snprintf(out, 96, "%.*s", (int)n, *list);
    *list += n;
    return n ? out : NULL;
}

static int has_seed(const char *arch) {
    for (int s = 0; s < N_SEEDS; s++)
        if (!strcmp(seeds[s].arch, arch)) return 1;
    return 0;
}

/* A draft of an architecture with these keys and tensors, completed. */
static int draft_of(Draft *d, const char *arch, const char *keys, const char *tensors, char *err) {
    char text[96], name[128];
    const char *list = "block_count=2 embedding_length=32 feed_forward_length=64 "
                       "context_length=512 attention.layer_norm_rms_epsilon=1e-5";
    memset(d, 0, sizeof *d);
    snprintf(d->arch, sizeof d->arch, "%s", arch);
    snprintf(d->name, sizeof d->name, "%s", arch);
    put_string(d, "general.architecture", arch);
    for (int part = 0; part < 2; part++, list = keys)
        while (word(&list, text)) {
            char *value = strchr(text, '=');
            *value++ = 0;
            snprintf(name, sizeof name, "%s.%s", arch, text);
            put_text(d, name, value);
        }
    put_tensor(d, "token_embd.weight")->ne[0] = 32;
    put_tensor(d, "output_norm.weight");
    while (word(&tensors, text))
        for (int layer = 0; layer < 3; layer++) {
            const char *colon = strchr(text, ':');
            if (colon ? atoi(text) != layer : layer == 2) continue;
            snprintf(name, sizeof name, "blk.%d.%s", layer, colon ? colon + 1 : text);
            put_tensor(d, *text == '/' ? text + 1 : name);
        }
    return complete(d, err);
}

static int seed_draft(Draft *d, int which, char *err) {
    int code = draft_of(d, seeds[which].arch, seeds[which].keys, seeds[which].tensors, err);
    snprintf(d->name, sizeof d->name, "%.31s (%d)", d->arch, which);
    return code;
}

/* ---- 5. running ------------------------------------------------------------------------------ */

enum { TOKENS = 71 };

static int32_t ids[TOKENS];
static float logits[3][TOKENS * 4096];

static int tokens(void) { return all ? TOKENS : 33; } /* the latter beyond a block of keys */

static int evaluate(const GlaModel *m, GlaSettings how, float *out, char *err) {
    GlaState *s;
    int code = gla_state_new(&s, m, &how, err);
    if (code) return code;
    code = gla_eval(s, ids, tokens(), out, tokens(), err);
    int32_t drafts[3];
    const int n = code || !how.mtp ? 0 : mtp_draft(s, ids[0], drafts, 3);
    check(n == (how.mtp ? 3 : 0), "not as many drafts as were asked for");
    for (int i = 0; i < n; i++) check(drafts[i] >= 0 && drafts[i] < m->config.vocab_size, "a draft that is no token");
    gla_state_free(s);
    return code;
}

static int same(const float *a, const float *b, size_t n) { /* in bits, or both no number */
    for (size_t i = 0; i < n; i++)
        if (as_bits(a[i]) != as_bits(b[i]) && !(isnan(a[i]) && isnan(b[i]))) return 0;
    return 1;
}

/* The draft loads and runs, or is refused. Returns whether it runs. */
static int loads, runs;
static int beside; /* of what ran last: the layers, behind which a block stands that is not used */
static int attempt(Draft *d) {
    static const GlaSettings how[] = {
        {.batch = 64, .threads = 1}, {.batch = 1, .threads = 1}, {.batch = 7, .threads = 2}
    };
    static int turn;
    char err[GLA_ERR] = "", what[GLA_ERR + 80];
    GlaInfo info;
    GlaModel *m;
    loads++;
    if (load(d, 1, &m, err)) {
        snprintf(what, sizeof what, "not one sentence: %s", err);
        check(is_sentence(err), what);
        return 0;
    }
    gla_info(m, &info);
    if (info.state_bytes > 1 << 22 || info.token_weights > 1 << 19 || info.vocab_size > 4096) {
        gla_close(m); /* honest, but slow */
        return 0;
    }
    runs++;
    turn++;
    beside = m->mtp.layer ? 0 : m->config.n_layers;
    for (uint64_t i = 0, state; i < TOKENS; i++) {
        state = i + 7;
        ids[i] = (int32_t)(next_random(&state) % (uint64_t)info.vocab_size);
    }
    for (int i = 0; i < 3; i++) {
        GlaSettings h = how[i];
        h.ctx = 96;
        h.mtp = m->mtp.layer && i == 2 ? 50 : 0; /* room for drafts changes nothing */
        if (!all && turn % 3) h.threads = 1; /* waking a thread takes longer than the work here */
        h.kv = strcmp(d->arch, "wall_transformer") ? GLA_KV_F32 + turn % 3 : GLA_KV_F32;
        int code = evaluate(m, h, logits[i], err);
        snprintf(what, sizeof what, "loads and does not run: %s", err);
        check(!code, what);
        if (code) break;
        snprintf(what, sizeof what, "runs of %d on %d threads give other bits", h.batch, h.threads);
        check(same(logits[0], logits[i], (size_t)tokens() * (size_t)info.vocab_size), what);
    }
    gla_close(m);
    return 1;
}

/* ---- 6. changes ------------------------------------------------------------------------------ */

static Draft base, changed;

static void say(const char *fmt, ...) PRINTF_LIKE(1, 2);
static void say(const char *fmt, ...) {
    va_list ap;
    int n = snprintf(current, sizeof current, "%s, ", base.name);
    va_start(ap, fmt);
    vsnprintf(current + n, sizeof current - (size_t)n, fmt, ap);
    va_end(ap);
}

/* The changed draft; and, if it is refused, with all else in the shape that goes with it. */
static void try_both(void) {
    char err[GLA_ERR];
    if (attempt(&changed)) return;
    if (!complete(&changed, err)) {
        strcat(current, ", completed");
        attempt(&changed);
    }
}

static const char *suffix(const char *name) { /* behind the number of its block, or NULL */
    const char *dot = strncmp(name, "blk.", 4) ? NULL : strchr(name + 4, '.');
    return dot ? dot + 1 : NULL;
}

static void drop_tensor(Draft *d, int i) {
    d->n_tensors--;
    memmove(&d->tensors[i], &d->tensors[i + 1], (size_t)(d->n_tensors - i) * sizeof *d->tensors);
}
static void drop_key(Draft *d, int i) {
    d->n_keys--;
    memmove(&d->keys[i], &d->keys[i + 1], (size_t)(d->n_keys - i) * sizeof *d->keys);
}

static void drop_tensors(void) { /* each, and each kind from all layers */
    for (int i = 0; i < base.n_tensors; i++) {
        const char *kind = suffix(base.tensors[i].name);
        changed = base;
        say("without %s", base.tensors[i].name);
        drop_tensor(&changed, i);
        try_both();
        if (!kind || strncmp(base.tensors[i].name, "blk.0.", 6)) continue;
        changed = base;
        say("without any %s", kind);
        for (int j = changed.n_tensors - 1; j >= 0; j--) {
            const char *other = suffix(changed.tensors[j].name);
            if (other && !strcmp(other, kind)) drop_tensor(&changed, j);
        }
        try_both();
    }
}

static void reshape_tensors(void) { /* one row or column more or less; another type */
    static const int other[] = {F16, BF16, Q8_0, Q4_0, Q6_K, 24 /* I8 */};
    for (int i = 0; i < base.n_tensors; i++)
        for (int way = 0; way < 5 + (int)(sizeof other / sizeof *other); way++) {
            if (!sampled(6)) continue;
            DraftTensor *t = &changed.tensors[i];
            changed = base;
            t->data = NULL;
            if (way < 4) t->ne[way / 2] += way % 2 ? 1 : (uint64_t)-1;
            else if (way == 4) t->ne[0] = base.tensors[i].ne[1], t->ne[1] = base.tensors[i].ne[0];
            else t->type = other[way - 5];
            if (!t->ne[0] || !t->ne[1] || t->ne[0] % (uint64_t)types[t->type].elems) continue;
            int a = (int)t->ne[0], b = (int)t->ne[1];
            say("%s (%d, %d) of type %s", t->name, a, b, types[t->type].name);
            int loaded = attempt(&changed);
            int used = !beside || strncmp(t->name, "blk.", 4) || atoi(t->name + 4) < beside;
            if (way == 4 && a > 1 && b > 1 && a != b)
                check(!loaded || !used, "loads, although transposed");
        }
}

/* The keys that run.c reads, by the function or the row that reads them, from its own text. */
static struct { char name[64]; int kind; } known[256];
static int n_known;
enum { AN_INT, A_FLOAT, AN_ACT, A_NORM, A_WORD, N_KINDS };
static const struct { int kind; const char *text; } readers[] = {
    {AN_INT, "int_key(l, \""}, {AN_INT, "{INT_KEY, \""}, {A_FLOAT, "float_key(l, \""},
    {A_FLOAT, "{FLOAT_KEY, \""}, {AN_ACT, "act_key(l, \""}, {AN_ACT, "word_key(l, \""},
    {AN_ACT, "{ACT_KEY, \""}, {A_NORM, "{NORM_KEY, \""}, {A_WORD, "str_key(l, \""},
};

static void read_known(void) {
    char err[GLA_ERR];
    Mapping map;
    if (map_file(&map, "run.c", err)) {
        printf("%s; run this from the top of the repository\n", err);
        exit(1);
    }
    char *text = must(calloc(1, map.n + 1));
    memcpy(text, map.data, map.n);
    for (size_t r = 0; r < sizeof readers / sizeof *readers; r++) {
        int found = 0;
        for (const char *p = text; (p = strstr(p, readers[r].text)) != NULL; found++) {
            char name[64];
            int i = 0;
            p += strlen(readers[r].text);
            snprintf(name, sizeof name, "%.*s", (int)strcspn(p, "\""), p);
            while (i < n_known && strcmp(known[i].name, name)) i++;
            if (i < n_known || n_known == 256) continue;
            snprintf(known[n_known].name, sizeof known->name, "%s", name);
            known[n_known++].kind = readers[r].kind;
        }
        snprintf(current, sizeof current, "keys that begin behind %s", readers[r].text);
        check(found || readers[r].kind == AN_ACT, "run.c has none");
    }
    free(text);
    unmap_file(&map);
}

static int mine[256], n_mine; /* of those the ones that this model's architecture reads */
static void read_mine(void) {
    static const uint8_t no_strings[12] = {GGUF_STR}; /* type and length of a list */
    char name[128], err[GLA_ERR];
    n_mine = 0;
    for (int i = 0; i < n_known; i++) {
        GlaModel *m;
        snprintf(name, sizeof name, "%.31s.%.63s", base.arch, known[i].name);
        changed = base;
        put_key(&changed, name, GGUF_ARR, no_strings, sizeof no_strings); /* fits nothing */
        if (!load(&changed, 0, &m, err)) gla_close(m);
        else mine[n_mine++] = i;
    }
}

/* Value number `which` for a key of the kind; 0: there are no more. */
static const char *value_of(int kind, int which) {
    static const char *const values[N_KINDS][24] = {
        {"0", "1", "2", "3", "4", "5", "8", "16", "24", "32", "48", "64", "-1", "100000",
         "67108864", "0,2", "3,1", "0.5", "word"},
        {"-1.0", "0.0", "0.5", "1.0", "2.0", "1e30", "inf", "-inf", "nan", "3", "0.5,0.0", "word"},
        {NULL},
        {"l2", "sum", "none", "l3", "1"}, {"none", "linear", "yarn", "words", "1"},
    };
    if (kind != AN_ACT) return values[kind][which];
    static const char *const none[] = {"no_such_map", "1", NULL};
    const int n = (int)(sizeof act_words / sizeof *act_words) - 1; /* the last is the end */
    const int n_maps = (int)(sizeof map_words / sizeof *map_words) - 1;
    if (which < n) return act_words[which].name;
    return which < n + n_maps ? map_words[which - n].name : none[which - n - n_maps];
}

static void set_key(int i, const char *value) {
    char name[128];
    snprintf(name, sizeof name, "%.31s.%.63s", base.arch, known[i].name);
    put_text(&changed, name, value);
}

/* One of the keys to one of their values; text, if there is one, gets what was set. */
static void set_any_key(char *text, size_t cap) {
    int i = mine[rnd((uint32_t)n_mine)], count = 0;
    while (value_of(known[i].kind, count)) count++;
    const char *value = value_of(known[i].kind, (int)rnd((uint32_t)count));
    size_t n = strlen(text);
    snprintf(text + n, cap - n, "%s%s = %s", n ? ", " : "", known[i].name, value);
    set_key(i, value);
}

static void change_keys(void) { /* each dropped, each with every value; pairs and triples */
    for (int i = 0; i < base.n_keys; i++) {
        changed = base;
        say("without the key %s", base.keys[i].name);
        drop_key(&changed, i);
        try_both();
    }
    for (int i = 0; i < n_mine; i++) {
        const char *value, *name = known[mine[i]].name;
        uint32_t rarely = strncmp(name, "mixer.", 6) ? 5 : 2;
        for (int which = 0; (value = value_of(known[mine[i]].kind, which)) != NULL; which++) {
            if (!sampled(rarely)) continue;
            changed = base;
            say("%s = %s", name, value);
            set_key(mine[i], value);
            try_both();
        }
    }
    for (int n = 0; n < (all ? 400 : 24) && n_mine; n++) {
        char text[300] = "";
        changed = base;
        for (int j = 2 + (int)rnd(2); j > 0; j--) set_any_key(text, sizeof text);
        say("%s", text);
        try_both();
    }
}

/* Tensors of all models, without the number of their block: another may take them by mistake. */
static char universe[512][64];
static int n_universe, universe_top[512]; /* whether it is of no block */

static void add_to_universe(const Draft *d) {
    for (int i = 0; i < d->n_tensors; i++) {
        const char *kind = suffix(d->tensors[i].name);
        int j = 0, top = !kind;
        if (top) kind = d->tensors[i].name;
        while (j < n_universe && strcmp(universe[j], kind)) j++;
        if (j < n_universe || n_universe == 512) continue;
        universe_top[n_universe] = top;
        snprintf(universe[n_universe++], 64, "%.63s", kind);
    }
}

static void add_tensors(void) { /* a tensor of another model, alone or with another key */
    for (int i = 0; i < n_universe; i++)
        for (int with_key = 0; with_key < 2; with_key++) {
            char name[80], text[100] = "";
            if (!sampled(with_key ? 16 : 6)) continue;
            changed = base;
            int where = 1 + (int)rnd(3); /* in layer 0, in layer 1, in both */
            for (int layer = 0; layer < 2; layer++) {
                snprintf(name, sizeof name, "blk.%d.%.63s", layer, universe[i]);
                if (universe_top[i]) snprintf(name, sizeof name, "%.63s", universe[i]);
                if (universe_top[i] || where & (1 << layer)) put_tensor(&changed, name);
            }
            if (with_key && n_mine) set_any_key(text, sizeof text);
            say("with %s in %d, %s", universe[i], where, text);
            try_both();
        }
}

/* rope_freqs divides the frequencies of softmax layers only, whichever layer comes first. */
static void own_frequencies(void) {
    static const char *const keys[2] = {
        HEADS4 "mixer.rope_dimension_count=8 attention.head_count=4,0",
        HEADS4 "mixer.rope_dimension_count=8 attention.head_count=0,4",
    };
    for (int softmax = 0; softmax < 2; softmax++) {
        char err[GLA_ERR] = "";
        GlaModel *m;
        int code = draft_of(&base, "gla", keys[softmax], "/rope_freqs.weight", err);
        say("layer %d softmax, with rope_freqs", softmax);
        if (!code) code = load(&base, 1, &m, err);
        check(!code, err);
        if (code) continue;
        const Layer *turned = &m->layers[softmax], *plain = &m->layers[!softmax];
        double speed = plain->rope.freq[1];
        check(speed == pow(10000, -0.25), "the linear layer turns with another's factors");
        check(turned->rope.freq[1] > speed, "the softmax layer turns without its factors");
        gla_close(m);
    }
}

/* ---- 7. main --------------------------------------------------------------------------------- */

static void crashed(int signal) {
    printf("FAIL %s: signal %d\n%d passed, %d failed\n", current, signal, passed, failed + 1);
    fflush(stdout);
    _Exit(1);
}

static void change_base(void) {
    int before = loads, ran = runs;
    double begin = now_s();
    say("as it is");
    check(attempt(&base), "does not load, or is too large");
    float range = 0; /* of its logits; NaN where there is one, infinite where one is */
    for (int j = 0; j < tokens(); j++) range += fabsf(logits[0][j]);
    check(range > 0.1f && range < 1e6f, "logits that show nothing");
    read_mine();
    drop_tensors();
    reshape_tensors();
    change_keys();
    add_tensors();
    if (verbose)
        printf("     %-40s %5d files, %5d of them run, %.2f s\n",
               base.name, loads - before, runs - ran, now_s() - begin);
    fflush(stdout);
}

int main(int argc, char **argv) {
    const char *only = "";
    int i = 1;
    for (; i < argc && *argv[i] == '-'; i++) {
        if (!strcmp(argv[i], "-v")) verbose = 1;
        else if (!strcmp(argv[i], "-a")) all = 1;
        else if (!strcmp(argv[i], "-k") && i + 1 < argc) only = argv[++i];
        else { fprintf(stderr, "bind [-v] [-a] [-k NAME] [FILE ...]\n"); return 2; }
    }
    for (size_t s = 0; s < 4; s++) signal((int[]){SIGSEGV, SIGFPE, SIGABRT, SIGILL}[s], crashed);
    read_known();
    for (int s = 0; s < N_SEEDS; s++) {
        char err[GLA_ERR] = "";
        int code = seed_draft(&base, s, err);
        snprintf(current, sizeof current, "%s", base.name);
        check(!code, err);
        add_to_universe(&base);
    }
    for (int s = 0; s < N_SEEDS && i == argc; s++) {
        char err[GLA_ERR];
        if (strstr(seeds[s].arch, only) && !seed_draft(&base, s, err)) change_base();
    }
    snprintf(current, sizeof current, "the table of models has no such row");
    for (size_t k = 0; k < sizeof mixers / sizeof *mixers; k++)
        check(!architecture_named(mixers[k].name) || has_seed(mixers[k].name), mixers[k].name);
    for (const Architecture *a = architectures; a->name; a++) check(has_seed(a->name), a->name);
    own_frequencies();
    for (; i < argc; i++) {
        Gguf g = {0};
        if (strstr(argv[i], only)) {
            check(read_draft(&base, &g, argv[i]), argv[i]);
            change_base();
        }
        gguf_close(&g);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
