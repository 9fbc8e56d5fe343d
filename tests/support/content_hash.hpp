#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/layer/layer_inputs.hpp"

namespace moescope::test {

/// FNV-1a, 64 bits, over the bytes of what is added: pins generated data as one golden constant.
class ContentHash {
 public:
  void add(std::span<const std::byte> bytes) {
    for (const std::byte byte : bytes) {
      value_ = (value_ ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3U;
    }
  }
  template <class T>
  void add(const std::vector<T>& values) {
    add(std::as_bytes(std::span(values)));
  }
  void add(const HostTensor& tensor) {
    add(std::span(tensor.data(), static_cast<std::size_t>(tensor.bytes())));
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325U;
};

inline std::uint64_t content_hash(const HostTensor& tensor) {
  ContentHash hash;
  hash.add(tensor);
  return hash.value();
}

/// Everything of a workload but the expert weights.
inline std::uint64_t content_hash(const LayerInputs& inputs) {
  ContentHash hash;
  hash.add(inputs.hidden_states);
  hash.add(inputs.router.row);
  hash.add(inputs.router.col);
  hash.add(inputs.router.row_bias);
  hash.add(inputs.router.col_bias);
  if (inputs.fixed_routing) {
    hash.add(inputs.fixed_routing->token_offsets);
    hash.add(inputs.fixed_routing->expert_ids);
    hash.add(inputs.fixed_routing->gates);
  }
  return hash.value();
}

}  // namespace moescope::test
