/* The C interface from C: values against formulas written here, gradients against finite differences, and
 * every kind of error. Prints what does not hold; the exit status says whether all did. */
#include <math.h>
#include <moescope.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "expect.h"

static int failures = 0;
static int checks = 0;

void expect(int holds, const char* what, const char* file, int line) {
  ++checks;
  if (!holds) {
    ++failures;
    fprintf(stderr, "%s:%d: %s (last error: %s)\n", file, line, what, moescope_last_error());
  }
}

/* A layer in double; L, d, Nr, Nc, K, f. */
enum { L = 5, D = 7, NR = 3, NC = 4, N = NR * NC, K = 5, F = 6 };

typedef struct {
  double x[L * D], row[L * NR], col[L * NC], w_in[N * D], w_out[N * D], gate[F * D], up[F * D], down[D * F];
} Layer;

static double next_value(unsigned* state) {
  *state = *state * 1664525U + 1013904223U;
  return (double)(*state >> 8) / (double)(1U << 24) - 0.5;
}

static void fill(double* values, int count, unsigned seed) {
  for (int i = 0; i < count; ++i) {
    values[i] = 2 * next_value(&seed);
  }
}

static Layer make_layer(void) {
  Layer layer;
  fill((double*)&layer, (int)(sizeof layer / sizeof(double)), 7);
  return layer;
}

static moescope_shape shape_of_layer(void) {
  moescope_shape shape = {sizeof shape,
                          L,
                          D,
                          NR,
                          NC,
                          K,
                          F,
                          MOESCOPE_F64,
                          MOESCOPE_INT32,
                          MOESCOPE_SILU,
                          MOESCOPE_GATES_SOFTMAX,
                          MOESCOPE_LOG_SOFTMAX,
                          0};
  return shape;
}

static moescope_layer_inputs inputs_of(const Layer* layer) {
  moescope_layer_inputs inputs = {sizeof inputs, layer->x,     layer->row,  layer->col,
                                  layer->w_in,   layer->w_out, layer->gate, layer->up,
                                  layer->down,   NULL,         NULL};
  return inputs;
}

/* A workspace of just what the operation asks for; the caller frees execution.workspace. */
static moescope_execution execution_for(moescope_operation operation, const moescope_shape* shape) {
  moescope_execution execution;
  memset(&execution, 0, sizeof execution);
  execution.struct_bytes = sizeof execution;
  size_t bytes = 0;
  EXPECT(moescope_workspace_bytes(operation, shape, &execution, &bytes) == MOESCOPE_OK);
  execution.workspace_bytes = bytes;
  execution.workspace = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
  return execution;
}

static double silu(double z) { return z / (1 + exp(-z)); }

static double log_sum_exp(const double* values, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) {
    sum += exp(values[i]);
  }
  return log(sum);
}

/* y of one token, by the formulas: all N scores, the K best by picking the best K times. */
static void truth(const Layer* layer, int mode, int t, double* y) {
  double score[N];
  for (int e = 0; e < N; ++e) {
    score[e] = layer->row[t * NR + e / NC] - log_sum_exp(layer->row + t * NR, NR) +
               layer->col[t * NC + e % NC] - log_sum_exp(layer->col + t * NC, NC);
  }
  int taken[N] = {0};
  double total = 0;
  for (int k = 0; k < K; ++k) {
    int best = -1;
    for (int e = 0; e < N; ++e) {
      if (!taken[e] && (best < 0 || score[e] > score[best])) {
        best = e;
      }
    }
    taken[best] = 1;
    total += exp(score[best]);
  }
  memset(y, 0, D * sizeof(double));
  for (int e = 0; e < N; ++e) {
    if (taken[e]) {
      double z = 0;
      for (int i = 0; i < D; ++i) {
        z += layer->x[t * D + i] * layer->w_in[e * D + i];
      }
      const double gate = exp(score[e]) / (mode == MOESCOPE_GATES_SOFTMAX ? total : 1);
      for (int i = 0; i < D; ++i) {
        y[i] += gate * silu(z) * layer->w_out[e * D + i];
      }
    }
  }
  for (int j = 0; j < F; ++j) {
    double g = 0;
    double u = 0;
    for (int i = 0; i < D; ++i) {
      g += layer->x[t * D + i] * layer->gate[j * D + i];
      u += layer->x[t * D + i] * layer->up[j * D + i];
    }
    for (int i = 0; i < D; ++i) {
      y[i] += silu(g) * u * layer->down[i * F + j];
    }
  }
}

static double loss(const Layer* layer, int mode, const double* dy) {
  double sum = 0;
  for (int t = 0; t < L; ++t) {
    double y[D];
    truth(layer, mode, t, y);
    for (int i = 0; i < D; ++i) {
      sum += dy[t * D + i] * y[i];
    }
  }
  return sum;
}

static void check_layer(int mode) {
  Layer layer = make_layer();
  moescope_shape shape = shape_of_layer();
  shape.gate_mode = mode;
  const moescope_layer_inputs inputs = inputs_of(&layer);
  double y[L * D];
  double gates[L * K];
  int32_t ids[L * K];
  moescope_execution forward = execution_for(MOESCOPE_LAYER_FORWARD, &shape);
  EXPECT(moescope_layer_forward(&shape, &forward, &inputs, y, ids, gates) == MOESCOPE_OK);
  for (int t = 0; t < L; ++t) {
    double expected[D];
    truth(&layer, mode, t, expected);
    for (int i = 0; i < D; ++i) {
      EXPECT(fabs(y[t * D + i] - expected[i]) < 1e-12);
    }
  }
  /* The same with int64 ids, one thread, and as pairs. */
  int64_t wide[L * K];
  double again[L * D];
  shape.id_dtype = MOESCOPE_INT64;
  forward.num_threads = 1;
  EXPECT(moescope_layer_forward(&shape, &forward, &inputs, again, wide, gates) == MOESCOPE_OK);
  EXPECT(memcmp(y, again, sizeof y) == 0);
  for (int i = 0; i < L * K; ++i) {
    EXPECT(wide[i] == ids[i]);
  }
  shape.id_dtype = MOESCOPE_INT32;
  double dy[L * D];
  fill(dy, L * D, 11);
  Layer gradient;
  const moescope_layer_gradients to = {sizeof to,     gradient.x,    gradient.row,
                                       gradient.col,  gradient.w_in, gradient.w_out,
                                       gradient.gate, gradient.up,   gradient.down};
  moescope_execution backward = execution_for(MOESCOPE_LAYER_BACKWARD, &shape);
  EXPECT(moescope_layer_backward(&shape, &backward, &inputs, ids, gates, dy, &to) == MOESCOPE_OK);
  double* values = (double*)&layer;
  const double* made = (const double*)&gradient;
  for (size_t i = 0; i < sizeof layer / sizeof(double); ++i) {
    const double kept = values[i];
    const double step = 1e-6;
    values[i] = kept + step;
    const double above = loss(&layer, mode, dy);
    values[i] = kept - step;
    const double below = loss(&layer, mode, dy);
    values[i] = kept;
    EXPECT(fabs((above - below) / (2 * step) - made[i]) < 1e-7);
  }
  /* A gradient that is not asked for changes none of the others. */
  Layer alone;
  memset(&alone, 0, sizeof alone);
  moescope_layer_gradients some;
  memset(&some, 0, sizeof some);
  some.struct_bytes = sizeof some;
  some.w_out = alone.w_out;
  EXPECT(moescope_layer_backward(&shape, &backward, &inputs, ids, gates, dy, &some) == MOESCOPE_OK);
  EXPECT(memcmp(alone.w_out, gradient.w_out, sizeof alone.w_out) == 0);
  free(forward.workspace);
  free(backward.workspace);
}

static void check_ties(void) {
  /* All scores equal: the lowest ids, in order. */
  moescope_shape shape = shape_of_layer();
  double zeros[L * NC] = {0};
  int32_t ids[L * K];
  double gates[L * K];
  double scores[L * K];
  moescope_execution execution = execution_for(MOESCOPE_SELECT_FORWARD, &shape);
  EXPECT(moescope_select_forward(&shape, &execution, zeros, zeros, ids, gates, scores) == MOESCOPE_OK);
  for (int i = 0; i < L * K; ++i) {
    EXPECT(ids[i] == i % K);
    EXPECT(fabs(gates[i] - 1.0 / K) < 1e-15);
    EXPECT(fabs(scores[i] + log(N)) < 1e-14);
  }
  free(execution.workspace);
}

static int refused(moescope_status status, moescope_status expected, const char* word) {
  return status == expected && strstr(moescope_last_error(), word) != NULL;
}

/* Of a library with kernels what can be asked where there is no GPU: nothing here launches any. */
static void check_cuda(void) {
  if (!moescope_supports(MOESCOPE_CUDA)) {
    return;
  }
  moescope_shape shape = shape_of_layer();
  moescope_execution execution;
  memset(&execution, 0, sizeof execution);
  execution.struct_bytes = sizeof execution;
  execution.device = MOESCOPE_CUDA;
  size_t bytes = 0;
#define ASK(operation) moescope_workspace_bytes(operation, &shape, &execution, &bytes)
  EXPECT(refused(ASK(MOESCOPE_LAYER_FORWARD), MOESCOPE_ERROR_UNSUPPORTED,
                 "dtype: float64 has no kernel on CUDA"));
  shape.dtype = MOESCOPE_BF16;
  EXPECT(refused(ASK(MOESCOPE_LAYER_FORWARD), MOESCOPE_ERROR_UNSUPPORTED,
                 "hidden_size: 7 must be a multiple of 8 on CUDA"));
  shape.hidden_size = 16384;
  EXPECT(refused(ASK(MOESCOPE_EXPERTS_FORWARD), MOESCOPE_ERROR_UNSUPPORTED,
                 "hidden_size: 16384 must be at most 8192"));
  shape.hidden_size = 64;
  for (moescope_operation operation = MOESCOPE_SELECT_FORWARD; operation <= MOESCOPE_LAYER_BACKWARD;
       ++operation) {
    const moescope_status status = ASK(operation);
    if (status ==
        MOESCOPE_OK) { /* of few tokens the pair form needs none, of a small grid the backward of selection */
      EXPECT(bytes > 0 || operation == MOESCOPE_SELECT_BACKWARD || operation == MOESCOPE_EXPERTS_FORWARD);
    } else { /* no GPU */
      EXPECT(refused(status, MOESCOPE_ERROR_DEVICE, "device: no CUDA device can be used"));
    }
  }
  shape.top_k = N + 1;
  EXPECT(refused(ASK(MOESCOPE_LAYER_FORWARD), MOESCOPE_ERROR_VALUE, "top_k: 13"));
#undef ASK
}

static void check_errors(void) {
  Layer layer = make_layer();
  moescope_layer_inputs inputs = inputs_of(&layer);
  double y[L * D];
  double gates[L * K];
  int32_t ids[L * K];
  moescope_shape shape = shape_of_layer();
  moescope_execution execution = execution_for(MOESCOPE_LAYER_FORWARD, &shape);
  size_t bytes = 0;
#define FORWARD() moescope_layer_forward(&shape, &execution, &inputs, y, ids, gates)
#define REFUSES(change, back, code, word) \
  change;                                 \
  EXPECT(refused(FORWARD(), code, word)); \
  back
  REFUSES(shape.top_k = N + 1, shape.top_k = K, MOESCOPE_ERROR_VALUE, "top_k: 13 must be in [1, 12]");
  REFUSES(shape.num_tokens = -1, shape.num_tokens = L, MOESCOPE_ERROR_VALUE, "num_tokens: -1");
  REFUSES(shape.hidden_size = 0, shape.hidden_size = D, MOESCOPE_ERROR_VALUE, "hidden_size: 0");
  REFUSES(shape.grid_rows = INT64_MAX, shape.grid_rows = NR, MOESCOPE_ERROR_VALUE, "grid_rows");
  REFUSES(shape.dtype = 9, shape.dtype = MOESCOPE_F64, MOESCOPE_ERROR_VALUE, "dtype: 9");
  REFUSES(shape.activation = -1, shape.activation = MOESCOPE_SILU, MOESCOPE_ERROR_VALUE, "activation: -1");
  REFUSES(shape.gate_mode = 4, shape.gate_mode = 0, MOESCOPE_ERROR_VALUE, "gate_mode: 4");
  REFUSES(shape.struct_bytes = 8, shape.struct_bytes = sizeof shape, MOESCOPE_ERROR_VALUE,
          "shape.struct_bytes: 8");
  REFUSES(execution.schedule = 3, execution.schedule = 0, MOESCOPE_ERROR_VALUE, "schedule: 3");
  REFUSES(execution.device = 2, execution.device = MOESCOPE_CPU, MOESCOPE_ERROR_VALUE, "device: 2");
  REFUSES(execution.workspace_bytes -= 1, execution.workspace_bytes += 1, MOESCOPE_ERROR_WORKSPACE,
          "workspace_bytes");
  REFUSES(inputs.w_out = NULL, inputs.w_out = layer.w_out, MOESCOPE_ERROR_NULL, "inputs.w_out: null");
  REFUSES(inputs.shared_up = NULL, inputs.shared_up = layer.up, MOESCOPE_ERROR_NULL,
          "inputs.shared_up: null");
  REFUSES(layer.row[4] = NAN, layer.row[4] = 0, MOESCOPE_ERROR_VALUE, "row_logits[1, 1]: nan");
  REFUSES(layer.col[19] = INFINITY, layer.col[19] = 0, MOESCOPE_ERROR_VALUE, "col_logits[4, 3]: inf");
  if (!moescope_supports(MOESCOPE_CUDA)) {
    execution.device = MOESCOPE_CUDA;
    const moescope_status status = FORWARD();
    EXPECT(status == MOESCOPE_ERROR_NOT_BUILT || status == MOESCOPE_ERROR_UNSUPPORTED);
    EXPECT(strstr(moescope_last_error(), "layer_forward") != NULL);
    execution.device = MOESCOPE_CPU;
  }
  EXPECT(moescope_layer_forward(NULL, &execution, &inputs, y, ids, gates) == MOESCOPE_ERROR_NULL);
  EXPECT(moescope_layer_forward(&shape, NULL, &inputs, y, ids, gates) == MOESCOPE_ERROR_NULL);
  EXPECT(moescope_layer_forward(&shape, &execution, NULL, y, ids, gates) == MOESCOPE_ERROR_NULL);
  EXPECT(moescope_layer_forward(&shape, &execution, &inputs, NULL, ids, gates) == MOESCOPE_ERROR_NULL);
  EXPECT(moescope_workspace_bytes(MOESCOPE_LAYER_FORWARD, &shape, &execution, NULL) == MOESCOPE_ERROR_NULL);
  EXPECT(moescope_workspace_bytes(99, &shape, &execution, &bytes) == MOESCOPE_ERROR_VALUE);
  EXPECT(FORWARD() == MOESCOPE_OK);
  ids[K] = N;
  EXPECT(
      refused(moescope_experts_forward(&shape, &execution, layer.x, layer.w_in, layer.w_out, ids, gates, y),
              MOESCOPE_ERROR_VALUE, "ids[1, 0]: 12 must be in [0, 12)"));
  free(execution.workspace);
}

static void check_nothing(void) {
  /* No token: nothing to read, and weight gradients of zero. */
  moescope_shape shape = shape_of_layer();
  shape.num_tokens = 0;
  moescope_execution execution = execution_for(MOESCOPE_LAYER_BACKWARD, &shape);
  moescope_layer_inputs inputs;
  memset(&inputs, 0, sizeof inputs);
  inputs.struct_bytes = sizeof inputs;
  EXPECT(moescope_layer_forward(&shape, &execution, &inputs, NULL, NULL, NULL) == MOESCOPE_OK);
  Layer gradient;
  memset(&gradient, 1, sizeof gradient);
  moescope_layer_gradients to = {sizeof to,      NULL,          NULL,        NULL,         gradient.w_in,
                                 gradient.w_out, gradient.gate, gradient.up, gradient.down};
  Layer layer = make_layer();
  inputs = inputs_of(&layer);
  EXPECT(moescope_layer_backward(&shape, &execution, &inputs, NULL, NULL, NULL, &to) == MOESCOPE_OK);
  EXPECT(gradient.w_in[0] == 0 && gradient.w_out[N * D - 1] == 0 && gradient.gate[3] == 0 &&
         gradient.down[5] == 0);
  free(execution.workspace);
}

int main(void) {
  EXPECT(moescope_abi_version() == MOESCOPE_ABI_VERSION);
  EXPECT(strlen(moescope_version()) > 0);
  EXPECT(moescope_supports(MOESCOPE_CPU) == 1);
  EXPECT(strcmp(moescope_status_name(MOESCOPE_ERROR_WORKSPACE), "workspace") == 0);
  EXPECT(strcmp(moescope_status_name(77), "unknown") == 0);
  check_layer(MOESCOPE_GATES_SOFTMAX);
  check_layer(MOESCOPE_GATES_PROBABILITY);
  check_ties();
  check_cuda();
#ifdef MOESCOPE_TEST_GPU
  check_on_gpu();
#endif
  check_errors();
  check_nothing();
  printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
