#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.hpp"
#include "core/layer/tensor.hpp"

namespace moescope {

/// A named array as a file holds it: little-endian bytes, row-major.
struct FileArray {
  std::string dtype;  ///< "f32", "f64", "bf16", "f16", "i32", "i64", "u8", ...; texts of NumPy: "U7", "S7"
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;

  std::int64_t size() const;
  /// Values as fp32 or rounded to bf16, folded to [rows, cols] (all but the last dimension are rows; 0-d and
  /// 1-d give one row). Accepts f16, bf16, f32, f64. Throws FileError naming `path` and `name` for others.
  HostTensor to_tensor(Dtype dtype, std::string_view path, std::string_view name) const;
  std::vector<float> to_floats(std::string_view path, std::string_view name) const;
  /// Integers of any width; throws FileError for floating types or values past int64.
  std::vector<std::int64_t> to_integers(std::string_view path, std::string_view name) const;
  /// The one text of an array of one element, as UTF-8 without the zeros behind it. Throws FileError for
  /// others.
  std::string to_text(std::string_view path, std::string_view name) const;
};

/// Everything a container file holds.
struct ArrayFile {
  std::map<std::string, FileArray> arrays;
  /// Members that no reader here can take, with why: only who asks for one fails.
  std::map<std::string, FileError> unreadable;
  std::map<std::string, std::string> metadata;  ///< safetensors "__metadata__"; empty for npy/npz

  /// Throws FileError(path, name, "missing"), or why the member cannot be read.
  const FileArray& get(std::string_view path, const std::string& name) const;
  /// Readable or not: an array that is there is never passed over.
  bool has(const std::string& name) const { return arrays.contains(name) || unreadable.contains(name); }
};

/// Parses safetensors bytes (https://github.com/huggingface/safetensors, section "Format"). Refuses with
/// FileError: header length past the end or over 100 MB, JSON that is not an object, shape overflow, offsets
/// that overlap, leave holes, run past the end or do not match dtype x shape. Tensors of a dtype that nothing
/// here computes with are `unreadable`. `path` is for messages only. No input crashes it (fuzzed).
ArrayFile parse_safetensors(std::span<const std::byte> file, std::string_view path);
ArrayFile read_safetensors(const std::filesystem::path& file);
/// Only the tensors that `wanted` names, of a file that may be larger than memory; the header is checked as a
/// whole. Tensors that are not wanted are absent from the result.
ArrayFile read_safetensors(const std::filesystem::path& file,
                           const std::function<bool(std::string_view name)>& wanted);
/// Names, dtypes and shapes of all tensors, without their bytes.
ArrayFile read_safetensors_header(const std::filesystem::path& file);

}  // namespace moescope
