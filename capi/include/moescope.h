/* moescope.h: the OmniMoE layer as plain functions of pointers, for C and for whatever can call C.
 *
 * Every function
 *   - returns MOESCOPE_OK or what went wrong, whose text moescope_last_error() has, for the calling thread;
 *   - reads shapes and options from structs, whose first field is their size as the caller knows it;
 *   - owns nothing and allocates no array: inputs, outputs and workspace are the caller's, who asks
 *     moescope_workspace_bytes() how much an operation needs (products of matrices on the CPU take a small
 * buffer of their own while they run);
 *   - throws nothing, reads no environment variable but OpenMP's, and keeps nothing of a call for the next
 * (on CUDA it makes a stream, two events and a cuBLASLt handle for each thread when they are first needed);
 *   - on the CPU returns when the work is done and checks every id and logit; on CUDA it enqueues on the
 * stream, synchronises with nothing and reads nothing back, so that a CUDA graph can capture it (once it has
 * run before: kernels are loaded on first use). There a token with an id outside [0, N) gets NaN in y, one
 * with a logit that is not finite NaN in its gates, or, where no pair is listed, nothing of its experts.
 *
 * Arrays are contiguous and row-major, all in the memory of `moescope_execution.device`. Outputs are written
 * whole and overlap no input. Symbols: L tokens, d hidden size, N = Nr Nc experts, K experts a token, f width
 * of the shared MLP. Storage (`dtype`): x, y, weights and their gradients. Logits, gates, scores and their
 * gradients are of the compute type: double where storage is double, else float. bfloat16 is storage alone:
 * sums are float, outputs are rounded once. Where nothing is stored (L = 0, or f = 0) pointers may be null.
 *
 * CPU results are the same bits whatever the number of threads.
 *
 * On CUDA storage is float or bfloat16 and hidden_size a multiple of 8; x, w_in, w_out, y and their gradients
 * are aligned to 16 bytes. Anything else is MOESCOPE_ERROR_UNSUPPORTED or MOESCOPE_ERROR_VALUE. Products of
 * the shared MLP are cuBLASLt's, which is looked for by name (libcublasLt.so.13) when the first is asked for;
 * one that the process has loaded is taken.
 */
#ifndef MOESCOPE_H
#define MOESCOPE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define MOESCOPE_API __attribute__((visibility("default")))
#else
#define MOESCOPE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes when a struct or a function here changes its meaning; fields appended to a struct do not change it.
 */
#define MOESCOPE_ABI_VERSION 1

typedef int32_t moescope_status;
enum {
  MOESCOPE_OK = 0,
  MOESCOPE_ERROR_NULL = 1,        /* a pointer that is needed is null */
  MOESCOPE_ERROR_VALUE = 2,       /* an extent, an option, an id or a logit that cannot be */
  MOESCOPE_ERROR_WORKSPACE = 3,   /* the workspace is smaller than moescope_workspace_bytes() says */
  MOESCOPE_ERROR_UNSUPPORTED = 4, /* meaningful, and there is no code for it on that device */
  MOESCOPE_ERROR_NOT_BUILT = 5,   /* this library was built without the device */
  MOESCOPE_ERROR_MEMORY = 6,      /* the system has no memory left */
  MOESCOPE_ERROR_DEVICE = 7,      /* the device reported an error */
  MOESCOPE_ERROR_INTERNAL = 8     /* a bug here */
};

enum { MOESCOPE_F32 = 0, MOESCOPE_F64 = 1, MOESCOPE_BF16 = 2 };   /* dtype */
enum { MOESCOPE_INT32 = 0, MOESCOPE_INT64 = 1 };                  /* id_dtype */
enum { MOESCOPE_SILU = 0, MOESCOPE_GELU = 1, MOESCOPE_RELU = 2 }; /* activation; gelu is the erf form */
enum { MOESCOPE_CPU = 0, MOESCOPE_CUDA = 1 };                     /* device */
enum { MOESCOPE_LOG_SOFTMAX = 0, MOESCOPE_AS_GIVEN = 1 };         /* marginals */
enum {                                                            /* gate_mode, of a token's K scores S */
       MOESCOPE_GATES_SOFTMAX = 0,                                /* softmax over the K selected */
       MOESCOPE_GATES_PROBABILITY = 1,                            /* exp(S): the published module */
       MOESCOPE_GATES_RELU = 2,                                   /* max(S, 0) */
       MOESCOPE_GATES_SCORE = 3                                   /* S */
};

typedef int32_t moescope_operation;
enum {
  MOESCOPE_SELECT_FORWARD = 0,
  MOESCOPE_SELECT_BACKWARD = 1,
  MOESCOPE_EXPERTS_FORWARD = 2,
  MOESCOPE_EXPERTS_BACKWARD = 3,
  MOESCOPE_MLP_FORWARD = 4,
  MOESCOPE_MLP_BACKWARD = 5,
  MOESCOPE_LAYER_FORWARD = 6,
  MOESCOPE_LAYER_BACKWARD = 7
};

/* What is computed. Every extent but num_tokens and shared_size is at least 1 where the operation reads it.
 */
typedef struct moescope_shape {
  size_t struct_bytes; /* sizeof(moescope_shape) */
  int64_t num_tokens;  /* L >= 0 */
  int64_t hidden_size; /* d; selection alone does not read it */
  int64_t grid_rows;   /* Nr; 1 where experts have no grid */
  int64_t grid_cols;   /* Nc; N where experts have no grid */
  int64_t top_k;       /* K; at most N in a selection */
  int64_t shared_size; /* f; 0: no shared MLP */
  int32_t dtype;       /* storage: MOESCOPE_F32, ... */
  int32_t id_dtype;    /* of ids: MOESCOPE_INT32, MOESCOPE_INT64 */
  int32_t activation;  /* MOESCOPE_SILU, ... */
  int32_t gate_mode;   /* MOESCOPE_GATES_SOFTMAX, ... */
  int32_t marginals;   /* what a score is the sum of: log-softmax of the logits, or logits as they are */
  int32_t reserved;    /* 0 */
} moescope_shape;

/* Where and how. */
typedef struct moescope_execution {
  size_t struct_bytes;  /* sizeof(moescope_execution) */
  int32_t device;       /* MOESCOPE_CPU or MOESCOPE_CUDA */
  int32_t device_index; /* of CUDA */
  void* stream;         /* cudaStream_t; null on the CPU */
  void* blas;      /* cublasLtHandle_t, or null: the library makes one for each thread; null on the CPU */
  void* workspace; /* in the device's memory, aligned to 64 bytes; null where 0 bytes are needed */
  size_t workspace_bytes; /* of it */
  int32_t num_threads;    /* CPU: at most so many; 0: as OpenMP says */
  int32_t deterministic;  /* 1: the same bits in every run; the CPU always gives them */
  int32_t schedule;       /* 0: chosen from the shape; no other value yet */
  int32_t reserved;       /* 0 */
  /* CUDA, of a layer's backward without ids: what moescope_layer_inputs.strip_counts had after the forward of
   * the same logits, or more. Its workspace is then for so much, and not for all that such a batch can
   * select, which is about twice of it. Too little makes NaN of the gradients of x and logits. 0: not known.
   */
  int64_t strip_entries;
  int64_t strip_tiles;
} moescope_execution;

/* "0.1.0", and MOESCOPE_ABI_VERSION as the library was built with. Static storage. */
MOESCOPE_API const char* moescope_version(void);
MOESCOPE_API int32_t moescope_abi_version(void);
/* 1 if device (MOESCOPE_CPU, MOESCOPE_CUDA) has code in this library, else 0. Whether there is a device is
 * another question. */
MOESCOPE_API int32_t moescope_supports(int32_t device);
/* "value" and so on; "unknown" for a code that is none. Static storage. */
MOESCOPE_API const char* moescope_status_name(moescope_status status);
/* Of the calling thread's last call that failed: "top_k: 65 must be in [1, 64]"; "" before there was one.
 * Valid until the thread's next call that fails. */
MOESCOPE_API const char* moescope_last_error(void);

/* Bytes of workspace that `operation` needs at this shape. Of `execution` device, device_index,
 * deterministic, num_threads, strip_entries and strip_tiles are read. */
MOESCOPE_API moescope_status moescope_workspace_bytes(moescope_operation operation,
                                                      const moescope_shape* shape,
                                                      const moescope_execution* execution, size_t* bytes);

/* Exact top K of the N sums row[i] + col[j] of every token, expert id = i Nc + j, and the gates over them.
 * row_logits [L,Nr], col_logits [L,Nc], finite. Writes ids [L,K] by falling score, equal scores by rising id;
 * gates [L,K]; scores [L,K], or null. */
MOESCOPE_API moescope_status moescope_select_forward(const moescope_shape* shape,
                                                     const moescope_execution* execution,
                                                     const void* row_logits, const void* col_logits,
                                                     void* ids, void* gates, void* scores);
/* From gates_gradient [L,K] to those of the logits, [L,Nr] and [L,Nc]; either may be null. ids: as the
 * forward wrote them. Ids themselves have no gradient. */
MOESCOPE_API moescope_status moescope_select_backward(const moescope_shape* shape,
                                                      const moescope_execution* execution,
                                                      const void* row_logits, const void* col_logits,
                                                      const void* ids, const void* gates_gradient,
                                                      void* row_gradient, void* col_gradient);

/* The pair form: y[t] = sum over k of gates[t,k] act(x[t] . w_in[ids[t,k]]) w_out[ids[t,k]].
 * x, y [L,d]; w_in, w_out [N,d]; ids, gates [L,K]. An id may stand there twice and counts twice; K may be
 * above N. */
MOESCOPE_API moescope_status moescope_experts_forward(const moescope_shape* shape,
                                                      const moescope_execution* execution, const void* x,
                                                      const void* w_in, const void* w_out, const void* ids,
                                                      const void* gates, void* y);
/* From y_gradient [L,d] to the gradients of what the forward read; those that are null are not computed. Rows
 * of w_in_gradient and w_out_gradient of experts without a token become 0. On CUDA both or neither of these
 * two: one alone is unsupported. */
MOESCOPE_API moescope_status moescope_experts_backward(const moescope_shape* shape,
                                                       const moescope_execution* execution, const void* x,
                                                       const void* w_in, const void* w_out, const void* ids,
                                                       const void* gates, const void* y_gradient,
                                                       void* x_gradient, void* w_in_gradient,
                                                       void* w_out_gradient, void* gates_gradient);

/* The shared MLP: y = (act(x gate^T) * (x up^T)) down^T; gate, up [f,d], down [d,f], as torch.nn.Linear keeps
 * them. */
MOESCOPE_API moescope_status moescope_mlp_forward(const moescope_shape* shape,
                                                  const moescope_execution* execution, const void* x,
                                                  const void* gate, const void* up, const void* down,
                                                  void* y);
MOESCOPE_API moescope_status moescope_mlp_backward(const moescope_shape* shape,
                                                   const moescope_execution* execution, const void* x,
                                                   const void* gate, const void* up, const void* down,
                                                   const void* y_gradient, void* x_gradient,
                                                   void* gate_gradient, void* up_gradient,
                                                   void* down_gradient);

/* The fused layer: selection, experts and, where shared_size > 0, the shared MLP added. */
typedef struct moescope_layer_inputs {
  size_t struct_bytes;     /* sizeof(moescope_layer_inputs) */
  const void* x;           /* [L,d] */
  const void* row_logits;  /* [L,Nr] */
  const void* col_logits;  /* [L,Nc] */
  const void* w_in;        /* [N,d] */
  const void* w_out;       /* [N,d] */
  const void* shared_gate; /* [f,d] */
  const void* shared_up;   /* [f,d] */
  const void* shared_down; /* [d,f] */
  /* CUDA, one float on the device: at least max over experts of |w_in|_2 |w_out|_inf, by which sums of many
   * tokens are scaled. Null: found anew in each call, which reads all weights once more. */
  const float* expert_bound;
  /* CUDA, two numbers on the device that a forward without ids writes, or null: entries and tiles of its
   * strips, or zeros where it has none. A backward does not read it. */
  int32_t* strip_counts;
} moescope_layer_inputs;

/* Of each input its gradient, or null for one that is not wanted. */
typedef struct moescope_layer_gradients {
  size_t struct_bytes; /* sizeof(moescope_layer_gradients) */
  void* x;           /* [L,d]: through experts and MLP; the part through the logits is the caller's product */
  void* row_logits;  /* [L,Nr] */
  void* col_logits;  /* [L,Nc] */
  void* w_in;        /* [N,d] */
  void* w_out;       /* [N,d] */
  void* shared_gate; /* [f,d] */
  void* shared_up;   /* [f,d] */
  void* shared_down; /* [d,f] */
} moescope_layer_gradients;

/* y [L,d]; ids and gates [L,K] as moescope_select_forward() writes them, for the backward, which takes them
 * as they are. On CUDA both may be null, here and in the backward: with many tokens the layer is faster
 * without a list of pairs, and its backward selects once more. */
MOESCOPE_API moescope_status moescope_layer_forward(const moescope_shape* shape,
                                                    const moescope_execution* execution,
                                                    const moescope_layer_inputs* inputs, void* y, void* ids,
                                                    void* gates);
MOESCOPE_API moescope_status moescope_layer_backward(const moescope_shape* shape,
                                                     const moescope_execution* execution,
                                                     const moescope_layer_inputs* inputs, const void* ids,
                                                     const void* gates, const void* y_gradient,
                                                     const moescope_layer_gradients* gradients);

/* For the Python package, which has it by ctypes.PyDLL: a new reference to a tuple of functions that call the
 * above without ctypes; null where the process runs no CPython. What they are is the package's and this
 * version's own affair. */
MOESCOPE_API void* moescope_python_calls(void);

#ifdef __cplusplus
}
#endif

#endif /* MOESCOPE_H */
