// The safetensors reader against honest, truncated and lying files.
#include "core/files/safetensors.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/files/npy.hpp"
#include "tests/support/cpu_time.hpp"
#include "tests/support/file_builders.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

using test::as_bytes;
using test::bytes_of;
using test::safetensors;

ArrayFile parse_file(const std::string& file) { return parse_safetensors(as_bytes(file), "a.safetensors"); }
ArrayFile parse_file(const std::string& header, const std::string& data) {
  return parse_file(safetensors(header, data));
}

std::string file_error_of(const std::string& file) {
  return test::message_of<FileError>([&] { parse_file(file); });
}
std::string file_error_of(const std::string& header, const std::string& data) {
  return file_error_of(safetensors(header, data));
}

TEST(Safetensors, ReadsEveryDtypeOfTheFormat) {
  struct Case {
    std::string spelled;
    std::string name;
    std::size_t bytes;
  };
  for (const Case& c : std::vector<Case>{{"BOOL", "bool", 1},
                                         {"U8", "u8", 1},
                                         {"I8", "i8", 1},
                                         {"I16", "i16", 2},
                                         {"U16", "u16", 2},
                                         {"I32", "i32", 4},
                                         {"U32", "u32", 4},
                                         {"I64", "i64", 8},
                                         {"U64", "u64", 8},
                                         {"F16", "f16", 2},
                                         {"BF16", "bf16", 2},
                                         {"F32", "f32", 4},
                                         {"F64", "f64", 8}}) {
    const auto file = parse_file(
        fmt::format(R"({{"t":{{"dtype":"{}","shape":[3],"data_offsets":[0,{}]}}}})", c.spelled, 3 * c.bytes),
        std::string(3 * c.bytes, '\x01'));
    EXPECT_EQ(file.get("a", "t").dtype, c.name);
    EXPECT_EQ(file.get("a", "t").bytes.size(), 3 * c.bytes);
    EXPECT_EQ(file.get("a", "t").size(), 3);
  }
}

TEST(Safetensors, ReadsTensorsInAnyOrderWithMetadataAndPadding) {
  const auto file = parse_file(
      R"({"b":{"dtype":"I32","shape":[2],"data_offsets":[8,16]},"__metadata__":{"top_k":"4"},)"
      R"("e":{"dtype":"F32","shape":[0,5],"data_offsets":[8,8]},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}   )",
      bytes_of<float>({1.5F, -2.0F}) + bytes_of<std::int32_t>({-7, 9}));
  EXPECT_EQ(file.metadata.at("top_k"), "4");
  EXPECT_EQ(file.get("a", "b").to_integers("a", "b"), (std::vector<std::int64_t>{-7, 9}));
  EXPECT_EQ(file.get("a", "a").to_floats("a", "a"), (std::vector<float>{1.5F, -2.0F}));
  EXPECT_EQ(file.get("a", "e").to_tensor(Dtype::kF32, "a", "e").cols(), 5);
  EXPECT_TRUE(file.has("e"));
  EXPECT_EQ(test::message_of<FileError>([&] { (void)file.get("a.safetensors", "router.row.weight"); }),
            "a.safetensors: router.row.weight: missing");
}

TEST(Safetensors, ReadsTheRecordedLayer) {
  const std::string path = test::source_path("data/small_layer2.safetensors");
  const auto file = read_array_file(path);
  EXPECT_EQ(file.metadata.at("top_k"), "32");
  EXPECT_EQ(file.arrays.size(), 8U);
  EXPECT_EQ(file.get(path, "hidden_states").shape, (std::vector<std::int64_t>{8192, 256}));
  const auto router = file.get(path, "router.row.weight").to_tensor(Dtype::kF32, path, "router.row.weight");
  EXPECT_EQ(router.rows(), 64);
  EXPECT_EQ(router.cols(), 256);
  double sum_of_squares = 0;
  for (const float value : file.get(path, "experts.w_in").to_floats(path, "experts.w_in")) {
    ASSERT_TRUE(std::isfinite(value));
    sum_of_squares += static_cast<double>(value) * value;
  }
  EXPECT_GT(sum_of_squares, 0);
}

TEST(Safetensors, RefusesTruncatedFiles) {
  EXPECT_EQ(file_error_of(""), "a.safetensors: header length: file has 0 bytes, needs at least 8");
  EXPECT_EQ(file_error_of("1234567"), "a.safetensors: header length: file has 7 bytes, needs at least 8");
  const std::string whole =
      safetensors(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", bytes_of<float>({1, 2}));
  parse_file(whole);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_TRUE(test::contains(file_error_of(whole.substr(0, size)), {"a.safetensors: "})) << size;
  }
  EXPECT_EQ(file_error_of(whole.substr(0, whole.size() - 1)),
            "a.safetensors: t.data_offsets: [0, 8] runs past the 7 bytes of data");
}

TEST(Safetensors, RefusesALyingHeaderLength) {
  EXPECT_EQ(file_error_of(test::little_endian<std::uint64_t>(100) + "{}"),
            "a.safetensors: header length: 100: runs past the end of the file (10 bytes)");
  EXPECT_EQ(file_error_of(test::little_endian<std::uint64_t>(~std::uint64_t{0}) + "{}"),
            "a.safetensors: header length: 18446744073709551615: must be at most 100000000");
}

TEST(Safetensors, RefusesAHeaderThatIsNoObject) {
  EXPECT_EQ(file_error_of("[1,2]", ""), "a.safetensors: header: '[1,2]': must be a JSON object");
  EXPECT_EQ(file_error_of("", ""), "a.safetensors: header: '': must be a JSON object");
  EXPECT_TRUE(
      test::contains(file_error_of("{\"t\":", ""), {"a.safetensors: header: column ", "not valid JSON: "}));
  EXPECT_TRUE(
      test::contains(file_error_of("{} x", ""), {"a.safetensors: header: column ", "not valid JSON: "}));
  EXPECT_TRUE(test::contains(file_error_of("{\"\xff\xfe\":{}}", ""),
                             {"a.safetensors: header: column ", "not valid JSON: "}));
  EXPECT_EQ(file_error_of(R"({"t":[]})", ""), "a.safetensors: t: []: must be an object");
}

TEST(Safetensors, RefusesDeepNestingWithoutRecursingIntoIt) {
  EXPECT_TRUE(test::contains(file_error_of("{\"t\":" + std::string(1'000'000, '['), ""),
                             {"a.safetensors: header: t[0]", "nests deeper than"}));
  std::string objects;
  for (int i = 0; i < 100'000; ++i) {
    objects += "{\"t\":";
  }
  EXPECT_TRUE(
      test::contains(file_error_of(objects, ""), {"a.safetensors: header: t.t", "nests deeper than"}));
}

TEST(Safetensors, RefusesRepeatedNames) {
  const std::string entry = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  EXPECT_EQ(file_error_of("{\"t\":" + entry + ",\"t\":" + entry + "}", "x"),
            "a.safetensors: header: key 't' stands there twice");
  EXPECT_EQ(file_error_of(R"({"t":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", "x"),
            "a.safetensors: header: t: key 'shape' stands there twice");
  // The same key in two different objects is no repetition.
  parse_file(
      R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"u":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
      "xy");
}

TEST(Safetensors, RefusesWrongEntries) {
  EXPECT_TRUE(test::contains(file_error_of(R"({"t":{"dtype":7,"shape":[1],"data_offsets":[0,1]}})", "x"),
                             {"t.dtype: 7: must"}));
  EXPECT_EQ(file_error_of(R"({"t":{"shape":[1],"data_offsets":[0,1]}})", "x"),
            "a.safetensors: t: dtype is missing");
  EXPECT_EQ(file_error_of(R"({"t":{"dtype":"U8","data_offsets":[0,1]}})", "x"),
            "a.safetensors: t: shape is missing");
  EXPECT_EQ(file_error_of(R"({"t":{"dtype":"U8","shape":[1]}})", "x"),
            "a.safetensors: t: data_offsets is missing");
  EXPECT_EQ(file_error_of(R"({"t":{"dtype":"U8","shape":3,"data_offsets":[0,1]}})", "x"),
            "a.safetensors: t.shape: 3: must be an array");
  for (const std::string extent :
       {"-1", "1.5", "\"1\"", "true", "1e3", "9223372036854775808", "99999999999999999999999"}) {
    EXPECT_TRUE(test::contains(
        file_error_of(fmt::format(R"({{"t":{{"dtype":"U8","shape":[{}],"data_offsets":[0,1]}}}})", extent),
                      "x"),
        {"a.safetensors: t.shape: ", ": must be an integer in [0, 2^63)"}))
        << extent;
  }
  EXPECT_EQ(file_error_of(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", "x"),
            "a.safetensors: t.data_offsets: [0]: must be [begin, end]");
  EXPECT_EQ(file_error_of(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}})", "x"),
            "a.safetensors: t.data_offsets: -1: must be an integer in [0, 2^63)");
  EXPECT_EQ(file_error_of(R"({"__metadata__":{"top_k":4}})", ""),
            "a.safetensors: __metadata__.top_k: 4: must be a string");
  EXPECT_EQ(file_error_of(R"({"__metadata__":[]})", ""),
            "a.safetensors: __metadata__: []: must be an object");
}

TEST(Safetensors, PassesOverTensorsOfOtherDtypesUnlessAskedFor) {
  const ArrayFile file = parse_file(
      R"({"t":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]},"u":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
      "x\x07");
  EXPECT_EQ(file.get("p", "u").to_integers("p", "u"), (std::vector<std::int64_t>{7}));
  EXPECT_TRUE(file.has("t"));
  EXPECT_EQ(test::message_of<FileError>([&] { file.get("p", "t"); }),
            "a.safetensors: t.dtype: \"F8_E4M3\": must be one of BOOL U8 I8 I16 U16 I32 U32 I64 U64 F16 BF16 "
            "F32 F64");
  // Where its bytes lie counts all the same.
  EXPECT_TRUE(test::contains(file_error_of(R"({"t":{"dtype":"F4","shape":[1],"data_offsets":[0,3]}})", "xx"),
                             {"t.data_offsets", "runs past"}));
}

TEST(Safetensors, TakesTimeInProportionToItsTensors) {
  std::string header = "{";
  constexpr int kTensors = 100'000;
  for (int i = 0; i < kTensors; ++i) {
    header += fmt::format("{}\"t{}\":{{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[{},{}]}}",
                          i == 0 ? "" : ",", i, i, i + 1);
  }
  const std::string file = safetensors(header + "}", std::string(kTensors, 'x'));
  const double start = test::cpu_seconds();
  EXPECT_EQ(parse_file(file).arrays.size(), static_cast<std::size_t>(kTensors));
  // Quadratic it took more than 90 s; with sanitizers it takes a few.
  EXPECT_LT(test::cpu_seconds() - start, 20);
}

TEST(Safetensors, RefusesAShapeThatOverflows) {
  EXPECT_EQ(
      file_error_of(R"({"t":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", ""),
      "a.safetensors: t.shape: f32 [4294967296, 4294967296] overflows int64");
  EXPECT_EQ(
      file_error_of(R"({"t":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}})", ""),
      "a.safetensors: t.shape: u8 [4294967296, 4294967296, 0] overflows int64");
  EXPECT_EQ(file_error_of(R"({"t":{"dtype":"F64","shape":[9223372036854775807],"data_offsets":[0,8]}})",
                          "12345678"),
            "a.safetensors: t.shape: f64 [9223372036854775807] overflows int64");
}

TEST(Safetensors, RefusesOffsetsThatDoNotTileTheData) {
  const auto two = [](int a_begin, int a_end, int b_begin, int b_end) {
    return fmt::format(
        R"({{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}},"b":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}})",
        a_end - a_begin, a_begin, a_end, b_end - b_begin, b_begin, b_end);
  };
  parse_file(two(4, 8, 0, 4), std::string(8, 'x'));
  EXPECT_EQ(file_error_of(two(0, 4, 2, 8), std::string(8, 'x')),
            "a.safetensors: b.data_offsets: begins at 2 where 4 was expected: tensors overlap");
  EXPECT_EQ(file_error_of(two(0, 4, 5, 8), std::string(8, 'x')),
            "a.safetensors: b.data_offsets: begins at 5 where 4 was expected: tensors leave a hole");
  EXPECT_EQ(file_error_of(two(1, 4, 4, 8), std::string(8, 'x')),
            "a.safetensors: a.data_offsets: begins at 1 where 0 was expected: tensors leave a hole");
  EXPECT_EQ(file_error_of(two(0, 4, 4, 8), std::string(9, 'x')),
            "a.safetensors: data: 9 bytes, of which tensors cover 8");
  EXPECT_EQ(file_error_of(two(0, 4, 4, 9), std::string(8, 'x')),
            "a.safetensors: b.data_offsets: [4, 9] runs past the 8 bytes of data");
  EXPECT_EQ(file_error_of(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", "x"),
            "a.safetensors: t.data_offsets: [1, 0] runs past the 1 bytes of data");
  EXPECT_EQ(file_error_of(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", "1234"),
            "a.safetensors: t.data_offsets: [0, 4] holds 4 bytes, f32 [2] needs 8");
}

TEST(Safetensors, PrintsHostileNamesAsOneShortAsciiLine) {
  const std::string message = file_error_of("{\"a\\n\\u0007\xc3\xa9" + std::string(500, 'x') + "\":[]}", "");
  EXPECT_LT(message.size(), 140U);
  for (const char c : message) {
    EXPECT_TRUE(c >= 0x20 && c < 0x7f);
  }
}

TEST(FileArray, ConvertsEveryFloatingType) {
  const auto floats = [](const std::string& dtype, const std::string& bytes, std::int64_t count) {
    const auto* begin = reinterpret_cast<const std::byte*>(bytes.data());
    return FileArray{dtype, {count}, {begin, begin + bytes.size()}}.to_floats("p", "t");
  };
  EXPECT_EQ(floats("bf16", bytes_of<std::uint16_t>({0x3f80, 0xc000}), 2), (std::vector<float>{1, -2}));
  EXPECT_EQ(floats("f64", bytes_of<double>({0.25, -3}), 2), (std::vector<float>{0.25F, -3}));
  // binary16: 1, -2, largest 65504, smallest subnormal 2^-24, largest subnormal, -0, infinity.
  EXPECT_EQ(
      floats("f16", bytes_of<std::uint16_t>({0x3c00, 0xc000, 0x7bff, 0x0001, 0x03ff, 0x8000, 0x7c00}), 7),
      (std::vector<float>{1, -2, 65504, 0x1p-24F, 1023 * 0x1p-24F, -0.0F,
                          std::numeric_limits<float>::infinity()}));
  EXPECT_TRUE(std::isnan(floats("f16", bytes_of<std::uint16_t>({0x7e00}), 1)[0]));
  EXPECT_EQ(test::message_of<FileError>([&] { floats("i32", bytes_of<std::int32_t>({1}), 1); }),
            "p: t: dtype i32: must be f16, bf16, f32 or f64");
}

TEST(FileArray, FoldsLeadingDimensionsIntoRowsAndRoundsToStorage) {
  const std::string bytes = bytes_of<float>({1, 2, 3, 4, 5, 6.01F});
  const auto* begin = reinterpret_cast<const std::byte*>(bytes.data());
  const std::vector<std::byte> data(begin, begin + bytes.size());
  const auto folded = FileArray{"f32", {1, 3, 2}, data}.to_tensor(Dtype::kBF16, "p", "t");
  EXPECT_EQ(folded.rows(), 3);
  EXPECT_EQ(folded.cols(), 2);
  EXPECT_EQ(folded.at(1, 0), 3);
  EXPECT_EQ(folded.at(2, 1), to_float(to_bf16(6.01F)));
  EXPECT_EQ((FileArray{"f32", {6}, data}.to_tensor(Dtype::kF32, "p", "t").rows()), 1);
  const auto scalar = FileArray{"f32", {}, {begin, begin + 4}}.to_tensor(Dtype::kF32, "p", "t");
  EXPECT_EQ(scalar.size(), 1);
  EXPECT_EQ(scalar.at(0, 0), 1);
}

TEST(FileArray, ConvertsEveryIntegerTypeAndRefusesWhatDoesNotFit) {
  const auto integers = [](const std::string& dtype, const std::string& bytes, std::int64_t count) {
    const auto* begin = reinterpret_cast<const std::byte*>(bytes.data());
    return FileArray{dtype, {count}, {begin, begin + bytes.size()}}.to_integers("p", "t");
  };
  using Values = std::vector<std::int64_t>;
  EXPECT_EQ(integers("i8", bytes_of<std::int8_t>({-128, 127}), 2), (Values{-128, 127}));
  EXPECT_EQ(integers("u8", bytes_of<std::uint8_t>({0, 255}), 2), (Values{0, 255}));
  EXPECT_EQ(integers("i16", bytes_of<std::int16_t>({-5}), 1), (Values{-5}));
  EXPECT_EQ(integers("u16", bytes_of<std::uint16_t>({65535}), 1), (Values{65535}));
  EXPECT_EQ(integers("u32", bytes_of<std::uint32_t>({4294967295U}), 1), (Values{4294967295}));
  EXPECT_EQ(integers("i64", bytes_of<std::int64_t>({-9}), 1), (Values{-9}));
  EXPECT_EQ(integers("u64", bytes_of<std::uint64_t>({9}), 1), (Values{9}));
  EXPECT_EQ(test::message_of<FileError>([&] {
              integers("u64", bytes_of<std::uint64_t>({1, ~std::uint64_t{0}}), 2);
            }),
            "p: t: element 1 = 18446744073709551615: does not fit int64");
  EXPECT_EQ(test::message_of<FileError>([&] { integers("f32", bytes_of<float>({1}), 1); }),
            "p: t: dtype f32: must be an integer type");
  EXPECT_EQ(test::message_of<FileError>([&] { integers("i32", bytes_of<std::int32_t>({1}), 2); }),
            "p: t: 4 bytes do not hold i32 [2]");
}

TEST(ReadArrayFile, NamesWhatIsWrongWithThePath) {
  const test::TempFolder folder;
  const auto error = [](const std::string& path) {
    return test::message_of<FileError>([&] { read_array_file(path); });
  };
  EXPECT_TRUE(
      test::contains(error(folder.path("none.safetensors").string()), {"none.safetensors: no such file"}));
  EXPECT_TRUE(test::contains(error(folder.write("a.bin", "x")),
                             {"a.bin: extension: '.bin': must be .npy, .npz or .safetensors"}));
  std::filesystem::create_directory(folder.path("d.npy"));
  EXPECT_TRUE(test::contains(error(folder.path("d.npy").string()), {"d.npy: not a regular file"}));
}

}  // namespace
}  // namespace moescope
