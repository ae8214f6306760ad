/* memory.c - the steps of doc/recurrence.md on a memory that is small enough to look at.
 *   cc -o memory doc/memory.c -lm && ./memory          all of them; ./memory delta: one
 *
 * Keys have four channels and values one, so S is a column of four numbers, and recurrence_step of run.c does the work. The keys a and b
 * are at right angles; x lies between them. Behind each token: what it reads under its own key, and what S then holds under a and b. */
#define RUN_NO_MAIN
#include "../run.c"

#define A (const float[]){1, 0, 0, 0}
#define B (const float[]){0, 1, 0, 0}
#define X (const float[]){0.6f, 0.8f, 0, 0}
#define NO_KEY (const float[]){0, 0, 0, 0}
#define ONE(number) (const float[]){number}
#define PER_CHANNEL(...) .d = (const float[]){__VA_ARGS__}, .d_step = 1
#define EVERYTHING .d = ONE(1)

typedef struct { const char *step, *says; Step s; } Said;

int main(int argc, char **argv) {
    const Said tokens[] = {
        {"sum", "a is 1", {.k = A, .v = ONE(1), EVERYTHING}},
        {"sum", "b is 2", {.k = B, .v = ONE(2), EVERYTHING}},
        {"sum", "a is 5", {.k = A, .v = ONE(5), EVERYTHING}},
        {"sum", "x is 1", {.k = X, .v = ONE(1), EVERYTHING}},

        {"fixed", "a is 8", {.k = A, .v = ONE(8), .d = ONE(0.5f)}},
        {"fixed", "b is 2", {.k = B, .v = ONE(2), .d = ONE(0.5f)}},
        {"fixed", "(nothing)", {.k = NO_KEY, .v = ONE(0), .d = ONE(0.5f)}},

        {"gate", "a is 8", {.k = A, .v = ONE(8), .d = ONE(1)}},
        {"gate", "(nothing)", {.k = NO_KEY, .v = ONE(0), .d = ONE(1)}},
        {"gate", "new page", {.k = NO_KEY, .v = ONE(0), .d = ONE(0)}},
        {"gate", "b is 2", {.k = B, .v = ONE(2), .d = ONE(1)}},

        {"channels", "a is 8", {.k = A, .v = ONE(8), EVERYTHING}},
        {"channels", "b is 2", {.k = B, .v = ONE(2), EVERYTHING}},
        {"channels", "forget a", {.k = NO_KEY, .v = ONE(0), PER_CHANNEL(0, 1, 1, 1)}},

        {"delta", "a is 1", {.k = A, .v = ONE(1), .e = A, .rho = 1, EVERYTHING}},
        {"delta", "b is 2", {.k = B, .v = ONE(2), .e = B, .rho = 1, EVERYTHING}},
        {"delta", "a is 5", {.k = A, .v = ONE(5), .e = A, .rho = 1, EVERYTHING}},
        {"delta", "a is 9, half", {.k = A, .v = ONE(4.5f), .e = A, .rho = 0.5f, EVERYTHING}},
        {"delta", "x is 1", {.k = X, .v = ONE(1), .e = X, .rho = 1, EVERYTHING}},

        {"gated", "a is 8", {.k = A, .v = ONE(8), .e = A, .rho = 1, .d = ONE(1)}},
        {"gated", "a is 5, d 1/2", {.k = A, .v = ONE(5), .e = A, .rho = 1, .d = ONE(0.5f)}},
        {"gated", "b is 2, d 1/2", {.k = B, .v = ONE(2), .e = B, .rho = 1, .d = ONE(0.5f)}},

        {"kda", "a is 8", {.k = A, .v = ONE(8), .e = A, .rho = 1, EVERYTHING}},
        {"kda", "b is 2", {.k = B, .v = ONE(2), .e = B, .rho = 1, PER_CHANNEL(0.5f, 1, 1, 1)}},
        {"kda", "b is 3", {.k = B, .v = ONE(3), .e = B, .rho = 1, PER_CHANNEL(0.5f, 1, 1, 1)}},

        {"gdn2", "a is 8", {.k = A, .v = ONE(8), .e = A, .rho = 1, EVERYTHING}},
        {"gdn2", "b is 2", {.k = B, .v = ONE(2), .e = B, .rho = 1, EVERYTHING}},
        {"gdn2", "a: add 1", {.k = A, .v = ONE(1), .e = NO_KEY, .rho = 1, EVERYTHING}},
        {"gdn2", "x: erase a's", {.k = X, .v = ONE(0), .e = (const float[]){0.6f, 0, 0, 0}, .rho = 1, EVERYTHING}},

        {"bonus", "a is 8", {.k = A, .v = ONE(8), .q = A, .u = (const float[]){0.25f, 0.25f, 0, 0}, EVERYTHING}},
        {"bonus", "a is 1", {.k = A, .v = ONE(1), .q = A, .u = (const float[]){0.25f, 0.25f, 0, 0}, EVERYTHING}},

        {"move", "a is 8", {.k = A, .v = ONE(8), .e = A, .w = NO_KEY, EVERYTHING}},
        {"move", "a goes to b", {.k = NO_KEY, .v = ONE(0), .e = A, .w = (const float[]){-1, 1, 0, 0}, EVERYTHING}},
    };
    float S[4] = {0}, o;
    const char *step = "";
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
        Step s = tokens[i].s;
        if (argc > 1 && strcmp(argv[1], tokens[i].step)) continue;
        if (strcmp(step, tokens[i].step)) printf("%-10s  o      S'a    S'b\n", step = tokens[i].step), memset(S, 0, sizeof S);
        if (!s.q) s.q = s.k;
        if (!s.e) s.e = s.k; /* with rho 0 what is read there goes nowhere */
        recurrence_step(S, 4, 1, &s, 0, &o);
        printf("  %-13s %5.2f  %5.2f  %5.2f\n", tokens[i].says, o, S[0], S[1]);
    }
    if (!*step) fprintf(stderr, "no step %s\n", argv[1]);
    return !*step;
}
