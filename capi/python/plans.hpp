#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>

#include "capi/python/interpreter.hpp"
#include "moescope.h"

/// What an operation of the Python package needs beside addresses, remembered for arguments of the same
/// types, extents and options.
namespace moescope::capi::python {

/// An operation as the package calls it: so many tensors (or None), then so many options.
struct Form {
  const char* name;  ///< of its kernel
  moescope_operation operation;
  int tensors;
  const char* options;  ///< a letter each: i integer or truth value, s text, l a sequence of truth values
  bool many;            ///< it returns a tuple
};
enum FormIndex : std::uint8_t {
  kSelect,
  kSelectBackward,
  kExperts,
  kExpertsBackward,
  kMlp,
  kMlpBackward,
  kLayer,
  kLayerBackward,
  kLayerOutput,
  kLayerOutputBackward,
  kForms
};
inline constexpr std::array<Form, kForms> kFormTable = {{
    {"select", MOESCOPE_SELECT_FORWARD, 2, "iss", true},
    {"select_backward", MOESCOPE_SELECT_BACKWARD, 4, "ss", true},
    {"experts", MOESCOPE_EXPERTS_FORWARD, 5, "s", false},
    {"experts_backward", MOESCOPE_EXPERTS_BACKWARD, 6, "siiii", true},
    {"mlp", MOESCOPE_MLP_FORWARD, 4, "s", false},
    {"mlp_backward", MOESCOPE_MLP_BACKWARD, 5, "siiii", true},
    {"layer", MOESCOPE_LAYER_FORWARD, 8, "iss", true},
    {"layer_backward", MOESCOPE_LAYER_BACKWARD, 11, "ssli", true},
    {"layer_output", MOESCOPE_LAYER_FORWARD, 9, "iss", false},
    {"layer_output_backward", MOESCOPE_LAYER_BACKWARD, 9, "issl", true},
}};
inline constexpr int kMostTensors = 11;
inline constexpr int kMostOutputs = 8;

/// Words that are equal where a plan serves.
class Key {
 public:
  static constexpr std::size_t kMost = 64;

  /// False where there is no room: such a call has no plan.
  bool add(std::uint64_t word) {
    if (count_ == kMost) {
      return false;
    }
    words_[count_++] = word;
    return true;
  }
  std::span<const std::uint64_t> words() const { return {words_.data(), count_}; }
  bool operator==(const Key& other) const;

  struct Hash {
    std::size_t operator()(const Key& key) const;
  };

 private:
  std::array<std::uint64_t, kMost> words_;  // as many as count_ says
  std::size_t count_ = 0;
};

/// How an output is made: as PyTorch's empty_like of one of the tensors, or of a tensor that is kept.
struct Output {
  int like = -1;           ///< argument; -1: `kept`
  Object* kept = nullptr;  ///< owned; of one element, whatever its extents
};

struct Plan {
  moescope_shape shape{};
  moescope_execution where{};
  int outputs = 0;
  std::array<Output, kMostOutputs> output{};
  Object* workspace = nullptr;  ///< as Output::kept; null: none is needed

  explicit Plan(const Interpreter& python) : python_(python) {}
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan();  // holds the interpreter's lock, as every call does

 private:
  const Interpreter& python_;
};

/// Of a thread. Numbers of tokens come and go: from kMost on it begins anew.
class Plans {
 public:
  static Plans& of_thread();
  std::shared_ptr<const Plan> find(const Key& key) const;
  void keep(const Key& key, std::shared_ptr<const Plan> plan);

 private:
  static constexpr std::size_t kMost = 2048;
  std::unordered_map<Key, std::shared_ptr<const Plan>, Key::Hash> known_;
};

}  // namespace moescope::capi::python
