/* Several layers of a pass in one call: calling them part by part costs more than computing few rows.
 *
 * It calls what a layer's parts are called with one by one, in the same order: bits are those of that way.
 */

#include "attention.h"
#include "real.h"

void kdn_norm(const real *x, int64_t x_stride, const float *weight, float eps, int64_t rows, int64_t size, real *y,
              int64_t threads);
void kdn_linear4(const Linear *call, int64_t nibbles);
void kdn_linear(const Linear *call);
void kdn_linear8(const Linear *call);

enum { WHOLE = 0, BYTES = 1 }; /* a higher form: weights of 4 bits times one less than it says */

typedef struct {
    Linear call; /* with its weights, sides and kind; where rows come from and go to is filled in */
    int64_t form;
} Matrix;

typedef struct {
    Matrix qkv, o, gate_up, down;
    const float *input_norm, *post_norm, *q_norm, *k_norm; /* the last two may be null */
    float input_eps, post_eps, q_eps, k_eps;
    int64_t window;
} Layer;

/* Where a sequence's unrotated K and V are noted: [layers][K, V][columns][kv heads * dim]. */
typedef struct {
    real *to; /* of its first row */
    int64_t columns, rows; /* so many rows are noted, from the first one on */
} Note;

typedef struct {
    const Layer *layers;
    int64_t first, stop, hidden; /* layers [first, stop) are computed */
    const Call *call; /* with heads, cos, sin, ... ; layer, window and rows are filled in */
    Sequence *sequences;
    int64_t num_sequences;
    const PrefixGroup *prefix_groups;
    int64_t num_prefix_groups;
    Task *tasks;
    const Note *notes; /* of every sequence */
    int64_t rows;
    real *x; /* [rows, hidden]: the input of layer `first`, and the output of the last one computed */
    real *normed, *fused, *q, *k, *turned, *attended, *between, *inner, *tiles;
    float *sums;
} Step;

static void multiply(const Step *step, const Matrix *matrix, const real *x, int64_t x_stride, const real *onto,
                     real *y, int64_t kind) {
    Linear call = matrix->call;
    call.x = x;
    call.x_stride = x_stride;
    call.rows = step->rows;
    call.y = y;
    call.y_stride = kind == GATED ? call.out / 2 : call.out;
    call.onto = onto;
    call.onto_stride = step->hidden;
    call.kind = kind;
    call.tiles = step->tiles;
    call.threads = step->call->threads;
    if (matrix->form != WHOLE) call.row_scale = step->sums;
    switch (matrix->form) {
#ifndef KDN_FLOATS /* rows in fp32 are multiplied by groups alone */
    case WHOLE: kdn_linear(&call); break;
    case BYTES: kdn_linear8(&call); break;
#endif
    default: kdn_linear4(&call, matrix->form - 1);
    }
}

static void note(const Step *step, int64_t layer, const real *k, int64_t k_stride, const real *v, int64_t v_stride) {
    const int64_t size = step->call->kv_heads * step->call->dim;
    for (int64_t i = 0; i < step->num_sequences; i++) {
        const Note *to = step->notes + i;
#pragma omp parallel for num_threads(step->call->threads) if (to->rows > 32)
        for (int64_t r = 0; r < to->rows; r++) {
            const int64_t row = step->sequences[i].start + r;
            real *at = to->to + (2 * layer * to->columns + r) * size;
            memcpy(at, k + row * k_stride, sizeof(real) * size);
            memcpy(at + to->columns * size, v + row * v_stride, sizeof(real) * size);
        }
    }
}

static void attend(const Step *step, int64_t number) {
    const Layer *layer = step->layers + number;
    Call call = *step->call;
    const int64_t queries = call.heads * call.dim, keys = call.kv_heads * call.dim, width = queries + 2 * keys;
    call.layer = number;
    call.window = layer->window;
    call.q = step->fused, call.k = step->fused + queries, call.v = step->fused + queries + keys;
    call.q_stride = call.k_stride = call.v_stride = width;
    if (layer->q_norm) {
#pragma omp parallel for num_threads(call.threads) if (step->rows > 32)
        for (int64_t r = 0; r < step->rows; r++) {
            kdn_norm(call.q + r * width, call.dim, layer->q_norm, layer->q_eps, call.heads, call.dim,
                     step->q + r * queries, 1);
            kdn_norm(call.k + r * width, call.dim, layer->k_norm, layer->k_eps, call.kv_heads, call.dim,
                     step->k + r * keys, 1);
        }
        call.q = step->q, call.q_stride = queries;
        call.k = step->k, call.k_stride = keys;
    }
    if (step->notes) note(step, number, call.k, call.k_stride, call.v, call.v_stride);
    call.out = step->turned;
    kdn_place(step->sequences, step->num_sequences, &call);
    call.q = step->turned, call.q_stride = queries;
    call.out = step->attended;
    kdn_attend(step->prefix_groups, step->num_prefix_groups, &call, step->tasks);
}

void kdn_step(const Step *step) {
    const int64_t threads = step->call->threads, queries = step->call->heads * step->call->dim;
    for (int64_t number = step->first; number < step->stop; number++) {
        const Layer *layer = step->layers + number;
        kdn_norm(step->x, step->hidden, layer->input_norm, layer->input_eps, step->rows, step->hidden, step->normed,
                 threads);
        multiply(step, &layer->qkv, step->normed, step->hidden, 0, step->fused, PLAIN);
        attend(step, number);
        multiply(step, &layer->o, step->attended, queries, step->x, step->between, PLAIN);
        kdn_norm(step->between, step->hidden, layer->post_norm, layer->post_eps, step->rows, step->hidden,
                 step->normed, threads);
        multiply(step, &layer->gate_up, step->normed, step->hidden, 0, step->inner, GATED);
        multiply(step, &layer->down, step->inner, layer->down.call.in, step->between, step->x, PLAIN);
    }
}
