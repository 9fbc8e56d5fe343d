/* Every operation on a GPU against the same call on the CPU, on float and with both types of ids. Without a
 * GPU it says so, and with MOESCOPE_REQUIRE_GPU=1 that is a failure. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <moescope.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "expect.h"

enum { L = 70, D = 64, NR = 6, NC = 8, N = NR * NC, K = 9, F = 24 };

/* Arrays lie in structs, so that one copy takes them to the device. */
#define ARRAY(type, name, count) _Alignas(64) type name[count]
typedef struct {
  ARRAY(float, x, L* D);
  ARRAY(float, row, L* NR);
  ARRAY(float, col, L* NC);
  ARRAY(float, w_in, N* D);
  ARRAY(float, w_out, N* D);
  ARRAY(float, gate, F* D);
  ARRAY(float, up, F* D);
  ARRAY(float, down, D* F);
  ARRAY(float, dy, L* D);
  ARRAY(float, dgates, L* K);
} Inputs;

typedef struct {
  ARRAY(int64_t, ids, L* K); /* as int32 half of it is used */
  ARRAY(float, gates, L* K);
  ARRAY(float, scores, L* K);
  ARRAY(float, select_drow, L* NR);
  ARRAY(float, select_dcol, L* NC);
  ARRAY(float, pairs_y, L* D);
  ARRAY(float, pairs_dx, L* D);
  ARRAY(float, pairs_dw_in, N* D);
  ARRAY(float, pairs_dw_out, N* D);
  ARRAY(float, pairs_dgates, L* K);
  ARRAY(float, mlp_y, L* D);
  ARRAY(float, mlp_dx, L* D);
  ARRAY(float, mlp_dgate, F* D);
  ARRAY(float, mlp_dup, F* D);
  ARRAY(float, mlp_ddown, D* F);
  ARRAY(int64_t, layer_ids, L* K);
  ARRAY(float, layer_gates, L* K);
  ARRAY(float, y, L* D);
  ARRAY(float, dx, L* D);
  ARRAY(float, drow, L* NR);
  ARRAY(float, dcol, L* NC);
  ARRAY(float, dw_in, N* D);
  ARRAY(float, dw_out, N* D);
  ARRAY(float, dgate, F* D);
  ARRAY(float, dup, F* D);
  ARRAY(float, ddown, D* F);
} Outputs;

static float next_value(unsigned* state) {
  *state = *state * 1664525U + 1013904223U;
  return (float)(*state >> 8) / (float)(1U << 24) - 0.5F;
}

/* Bytes of the operation that takes most. */
static size_t most_workspace(const moescope_shape* shape, const moescope_execution* execution) {
  size_t most = 0;
  for (moescope_operation operation = MOESCOPE_SELECT_FORWARD; operation <= MOESCOPE_LAYER_BACKWARD;
       ++operation) {
    size_t bytes = 0;
    EXPECT(moescope_workspace_bytes(operation, shape, execution, &bytes) == MOESCOPE_OK);
    most = bytes > most ? bytes : most;
  }
  return most;
}

/* All eight operations. Nothing here reads an array: they may be the device's. */
static void run(const moescope_shape* shape, const moescope_execution* execution, const Inputs* in,
                Outputs* out, int lists_pairs) {
#define HOLDS(call) EXPECT((call) == MOESCOPE_OK)
  HOLDS(moescope_select_forward(shape, execution, in->row, in->col, out->ids, out->gates, out->scores));
  HOLDS(moescope_select_backward(shape, execution, in->row, in->col, out->ids, in->dgates, out->select_drow,
                                 out->select_dcol));
  HOLDS(moescope_experts_forward(shape, execution, in->x, in->w_in, in->w_out, out->ids, out->gates,
                                 out->pairs_y));
  HOLDS(moescope_experts_backward(shape, execution, in->x, in->w_in, in->w_out, out->ids, out->gates, in->dy,
                                  out->pairs_dx, out->pairs_dw_in, out->pairs_dw_out, out->pairs_dgates));
  HOLDS(moescope_mlp_forward(shape, execution, in->x, in->gate, in->up, in->down, out->mlp_y));
  HOLDS(moescope_mlp_backward(shape, execution, in->x, in->gate, in->up, in->down, in->dy, out->mlp_dx,
                              out->mlp_dgate, out->mlp_dup, out->mlp_ddown));
  const moescope_layer_inputs inputs = {sizeof inputs, in->x,  in->row,  in->col, in->w_in, in->w_out,
                                        in->gate,      in->up, in->down, NULL,    NULL};
  const moescope_layer_gradients gradients = {sizeof gradients, out->dx,    out->drow, out->dcol, out->dw_in,
                                              out->dw_out,      out->dgate, out->dup,  out->ddown};
  HOLDS(moescope_layer_forward(shape, execution, &inputs, out->y, lists_pairs ? out->layer_ids : NULL,
                               lists_pairs ? out->layer_gates : NULL));
  HOLDS(moescope_layer_backward(shape, execution, &inputs, lists_pairs ? out->layer_ids : NULL,
                                lists_pairs ? out->layer_gates : NULL, in->dy, &gradients));
#undef HOLDS
}

/* Relative, in the 2-norm. */
static double error_of(const float* made, const float* expected, size_t count) {
  double apart = 0;
  double size = 0;
  for (size_t i = 0; i < count; ++i) {
    const double difference = (double)made[i] - (double)expected[i];
    apart += difference * difference;
    size += (double)expected[i] * (double)expected[i];
  }
  return sqrt(apart / size);
}

static void compare(const Outputs* made, const Outputs* expected) {
  const double limit = 1e-5;
#define NEAR(name) EXPECT(error_of(made->name, expected->name, sizeof made->name / sizeof(float)) < limit)
  NEAR(gates);
  NEAR(scores);
  NEAR(select_drow);
  NEAR(select_dcol);
  NEAR(pairs_y);
  NEAR(pairs_dx);
  NEAR(pairs_dw_in);
  NEAR(pairs_dw_out);
  NEAR(pairs_dgates);
  NEAR(mlp_y);
  NEAR(mlp_dx);
  NEAR(mlp_dgate);
  NEAR(mlp_dup);
  NEAR(mlp_ddown);
  NEAR(y);
  NEAR(dx);
  NEAR(drow);
  NEAR(dcol);
  NEAR(dw_in);
  NEAR(dw_out);
  NEAR(dgate);
  NEAR(dup);
  NEAR(ddown);
#undef NEAR
}

static void check_type(const Inputs* inputs, int32_t id_dtype, int lists_pairs) {
  const moescope_shape shape = {
      sizeof shape,         L, D, NR, NC, K, F, MOESCOPE_F32, id_dtype, MOESCOPE_SILU, MOESCOPE_GATES_SOFTMAX,
      MOESCOPE_LOG_SOFTMAX, 0};
  Outputs* const expected = calloc(1, sizeof *expected);
  Outputs* const made = calloc(1, sizeof *made);
  moescope_execution on_cpu;
  memset(&on_cpu, 0, sizeof on_cpu);
  on_cpu.struct_bytes = sizeof on_cpu;
  moescope_execution on_gpu = on_cpu;
  on_gpu.device = MOESCOPE_CUDA;
  on_cpu.workspace_bytes = most_workspace(&shape, &on_cpu);
  on_gpu.workspace_bytes = most_workspace(&shape, &on_gpu);
  on_cpu.workspace = aligned_alloc(64, (on_cpu.workspace_bytes + 63) / 64 * 64);
  Inputs* there = NULL;
  Outputs* out = NULL;
  const int has_memory = cudaMalloc((void**)&there, sizeof *there) == cudaSuccess &&
                         cudaMalloc((void**)&out, sizeof *out) == cudaSuccess &&
                         cudaMalloc(&on_gpu.workspace, on_gpu.workspace_bytes) == cudaSuccess;
  EXPECT(has_memory);
  if (has_memory) {
    run(&shape, &on_cpu, inputs, expected, 1);
    cudaMemcpy(there, inputs, sizeof *there, cudaMemcpyHostToDevice);
    cudaMemset(out, 0xFF, sizeof *out);
    cudaMemset(on_gpu.workspace, 0xFF, on_gpu.workspace_bytes);
    run(&shape, &on_gpu, there, out, lists_pairs);
    EXPECT(cudaDeviceSynchronize() == cudaSuccess);
    cudaMemcpy(made, out, sizeof *made, cudaMemcpyDeviceToHost);
    const size_t id_bytes = (size_t)L * K * (id_dtype == MOESCOPE_INT64 ? 8 : 4);
    EXPECT(memcmp(made->ids, expected->ids, id_bytes) == 0);
    EXPECT(!lists_pairs || memcmp(made->layer_ids, expected->layer_ids, id_bytes) == 0);
    compare(made, expected);
  }
  cudaFree(there);
  cudaFree(out);
  cudaFree(on_gpu.workspace);
  free(on_cpu.workspace);
  free(made);
  free(expected);
}

void check_on_gpu(void) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    const char* const required = getenv("MOESCOPE_REQUIRE_GPU");
    printf("no GPU: nothing was run on one\n");
    EXPECT(required == NULL || strcmp(required, "1") != 0);
    return;
  }
  Inputs* const inputs = malloc(sizeof *inputs);
  unsigned state = 11;
  for (float* value = (float*)inputs; value < (float*)(inputs + 1); ++value) {
    *value = 2 * next_value(&state);
  }
  check_type(inputs, MOESCOPE_INT32, 1);
  check_type(inputs, MOESCOPE_INT64, 1);
  check_type(inputs, MOESCOPE_INT32, 0);
  free(inputs);
}
