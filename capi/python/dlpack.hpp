#pragma once

#include <cstdint>

/// What DLPack 1.x says of a tensor, and the table of functions by which a framework gives its tensors to C
/// (its attribute __dlpack_c_exchange_api__, from PyTorch 2.10 on). Laid out as in dmlc/dlpack's dlpack.h.
namespace moescope::capi::python {

struct Object;

struct DlTensor {
  void* data = nullptr;
  std::int32_t device_type = 0;
  std::int32_t device_index = 0;
  std::int32_t rank = 0;
  std::uint8_t code = 0;
  std::uint8_t bits = 0;
  std::uint16_t lanes = 0;
  std::int64_t* extents = nullptr;
  std::int64_t* strides = nullptr;  ///< in elements
  std::uint64_t byte_offset = 0;
};
static_assert(sizeof(DlTensor) == 48);

inline constexpr std::int32_t kDlCpu = 1;
inline constexpr std::int32_t kDlCuda = 2;

struct DlExchange {
  static constexpr std::uint32_t kMajor = 1;
  static constexpr const char* kCapsule = "dlpack_exchange_api";

  std::uint32_t major = 0;
  std::uint32_t minor = 0;
  const DlExchange* older = nullptr;
  void* allocate = nullptr;
  void* own = nullptr;
  void* give = nullptr;
  /// Of a tensor that the caller holds; 0, or -1 with a Python error set. May be null.
  int (*view)(Object* tensor, DlTensor* view) = nullptr;
  int (*stream)(std::int32_t device_type, std::int32_t device_index, void** stream) = nullptr;
};

}  // namespace moescope::capi::python
