/* What kernels that CuTe DSL compiled ahead of time call, as its own runtime library (37 MB, mostly a
 * compiler) passes it on: the CUDA runtime's functions under other names, and loading a library of kernels
 * once. sonic_ahead.py compiles and loads this. */
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stddef.h>

cudaError_t _cudaGetDevice(int* device) { return cudaGetDevice(device); }
cudaError_t _cudaSetDevice(int device) { return cudaSetDevice(device); }
cudaError_t _cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr attribute, int device) {
  return cudaDeviceGetAttribute(value, attribute, device);
}
cudaError_t _cudaFuncSetAttribute(const void* function, enum cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(function, attribute, value);
}
cudaError_t _cudaKernelSetAttributeForDevice(cudaKernel_t kernel, enum cudaFuncAttribute attribute, int value,
                                             int device) {
  return cudaKernelSetAttributeForDevice(kernel, attribute, value, device);
}
cudaError_t _cudaLaunchKernelEx(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  return cudaLaunchKernelExC(config, function, arguments);
}
cudaError_t _cudaLibraryLoadData(cudaLibrary_t* library, const void* code, enum cudaJitOption* options,
                                 void** values, unsigned count, enum cudaLibraryOption* library_options,
                                 void** library_values, unsigned library_count) {
  return cudaLibraryLoadData(library, code, options, values, count, library_options, library_values,
                             library_count);
}
cudaError_t _cudaLibraryGetKernel(cudaKernel_t* kernel, cudaLibrary_t library, const char* name) {
  return cudaLibraryGetKernel(kernel, library, name);
}

CUresult _cuKernelGetAttribute(int* value, CUfunction_attribute attribute, CUkernel kernel, int device) {
  typedef CUresult (*Function)(int*, CUfunction_attribute, CUkernel, CUdevice);
  void* found = NULL;
  enum cudaDriverEntryPointQueryResult status;
  if (cudaGetDriverEntryPointByVersion("cuKernelGetAttribute", &found, 12080, cudaEnableDefault, &status) !=
          cudaSuccess ||
      found == NULL) {
    return CUDA_ERROR_UNKNOWN;
  }
  return ((Function)found)(value, attribute, kernel, device); /* a CUdevice is its ordinal */
}

const char* cuda_dialect_get_error_name(cudaError_t error) { return cudaGetErrorName(error); }

/* *library becomes what `initialise` loads, and its kernels those of every device; `set_error` takes a kind
 * and a text. */
int cuda_dialect_init_library_once(void** library, int (*initialise)(void**), int (*load)(void**, int),
                                   void (*set_error)(const char*, const char*)) {
  static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  int result = 0;
  pthread_mutex_lock(&mutex);
  if (*library == NULL) {
    void* loaded = NULL;
    int error = initialise(&loaded);
    if (error == 0 && load != NULL) {
      int devices = 0;
      error = (int)cudaGetDeviceCount(&devices);
      int failed = 0;
      int last = error;
      for (int device = 0; error == 0 && device < devices; ++device) {
        const int one = load(&loaded, device);
        failed += one != 0;
        last = one != 0 ? one : last;
      }
      error = devices > 0 && failed == devices ? last : error;
    }
    if (error == 0) {
      *library = loaded;
    } else {
      set_error("RuntimeError", cudaGetErrorString((cudaError_t)error));
      result = -1;
    }
  }
  pthread_mutex_unlock(&mutex);
  return result;
}

void cuda_dialect_unload_library_once(void** library) {
  void* loaded = *library;
  *library = NULL;
  if (loaded != NULL) {
    (void)cudaLibraryUnload((cudaLibrary_t)loaded);
  }
}
