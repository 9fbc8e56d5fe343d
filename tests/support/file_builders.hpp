#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.hpp"

/// Files byte by byte, so that a test can make them lie.
namespace moescope::test {

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

inline std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

template <class T>
std::string little_endian(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(T)};
}

inline std::string safetensors(std::string_view header, std::string_view data) {
  return little_endian<std::uint64_t>(header.size()) + std::string(header) + std::string(data);
}

/// `dict` is the header's Python text, e.g. "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }".
inline std::string npy_of_header(std::string_view dict, std::string_view data, int major = 1) {
  std::string text = "\x93NUMPY";
  text += static_cast<char>(major);
  text += '\0';
  text += major == 1 ? little_endian(static_cast<std::uint16_t>(dict.size()))
                     : little_endian(static_cast<std::uint32_t>(dict.size()));
  return text + std::string(dict) + std::string(data);
}

inline std::string npy(std::string_view descr, std::string_view shape, std::string_view data,
                       bool fortran = false, int major = 1) {
  return npy_of_header(fmt::format("{{'descr': '{}', 'fortran_order': {}, 'shape': {}, }}\n", descr,
                                   fortran ? "True" : "False", shape),
                       data, major);
}

/// One member of a zip file. Fields that are not negative replace what an honest file would say.
struct ZipMember {
  std::string name;
  std::string data;
  bool deflate = false;
  std::int64_t unpacked_bytes = -1;
  std::int64_t packed_bytes = -1;
  std::int64_t crc = -1;
  int method = -1;
  int flags = 0;
};

inline std::string deflated(const std::string& data) {
  z_stream stream{};
  deflateInit2(&stream, Z_BEST_COMPRESSION, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string packed(deflateBound(&stream, data.size()), '\0');
  std::string input = data;
  stream.next_in = reinterpret_cast<Bytef*>(input.data());
  stream.avail_in = static_cast<uInt>(input.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  deflate(&stream, Z_FINISH);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

/// A zip file (APPNOTE 4.3): local headers with data, directory, end record. `filler` bytes lie before the
/// directory.
inline std::string zip(const std::vector<ZipMember>& members, std::size_t filler = 0) {
  std::string file;
  std::string directory;
  for (const ZipMember& member : members) {
    const std::string stored = member.deflate ? deflated(member.data) : member.data;
    const auto crc =
        crc32(0, reinterpret_cast<const Bytef*>(member.data.data()), static_cast<uInt>(member.data.size()));
    const auto or_honest = [](std::int64_t lie, std::size_t truth) {
      return little_endian(static_cast<std::uint32_t>(lie < 0 ? truth : static_cast<std::size_t>(lie)));
    };
    const std::string common =
        little_endian<std::uint16_t>(20) + little_endian(static_cast<std::uint16_t>(member.flags)) +
        little_endian(static_cast<std::uint16_t>(member.method >= 0 ? member.method
                                                 : member.deflate   ? 8
                                                                    : 0)) +
        little_endian<std::uint32_t>(0) + or_honest(member.crc, crc) +
        or_honest(member.packed_bytes, stored.size()) + or_honest(member.unpacked_bytes, member.data.size()) +
        little_endian(static_cast<std::uint16_t>(member.name.size())) + little_endian<std::uint16_t>(0);
    directory += "PK\x01\x02" + little_endian<std::uint16_t>(20) + common + std::string(10, '\0') +
                 little_endian(static_cast<std::uint32_t>(file.size())) + member.name;
    // common ends at the extra length; the directory adds comment, disk, attributes (2 + 2 + 2 + 4 bytes).
    file += "PK\x03\x04" + common + member.name + stored;
  }
  file.append(filler, '\0');
  const auto count = little_endian(static_cast<std::uint16_t>(members.size()));
  return file + directory + "PK\x05\x06" + std::string(4, '\0') + count + count +
         little_endian(static_cast<std::uint32_t>(directory.size())) +
         little_endian(static_cast<std::uint32_t>(file.size())) + std::string(2, '\0');
}

/// The message of the E that `call` throws; a test failure when it throws nothing or something else.
template <class E, class Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const E& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another exception: " << error.what();
    return {};
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

/// Whether all `parts` occur in `message`; a failure prints both.
inline testing::AssertionResult contains(const std::string& message,
                                         std::initializer_list<std::string_view> parts) {
  for (const std::string_view part : parts) {
    if (message.find(part) == std::string::npos) {
      return testing::AssertionFailure() << "\"" << message << "\" lacks \"" << part << "\"";
    }
  }
  return testing::AssertionSuccess();
}

/// A folder for one test, removed at its end.
class TempFolder {
 public:
  TempFolder() {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    std::string name = fmt::format("moescope_{}_{}_{}", info->test_suite_name(), info->name(), ::getpid());
    for (char& c : name) {
      c = c == '/' ? '_' : c;
    }
    folder_ = std::filesystem::path(testing::TempDir()) / name;
    std::filesystem::create_directories(folder_);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  std::filesystem::path path(const std::string& name) const { return folder_ / name; }
  std::string write(const std::string& name, const std::string& content) const {
    std::ofstream(path(name), std::ios::binary) << content;
    return path(name).string();
  }
  std::size_t file_count() const {
    const std::filesystem::directory_iterator files(folder_);
    return static_cast<std::size_t>(std::distance(begin(files), end(files)));
  }

 private:
  std::filesystem::path folder_;
};

}  // namespace moescope::test
