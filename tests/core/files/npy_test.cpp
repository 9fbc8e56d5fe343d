// The .npy and .npz readers against honest, truncated and lying files.
#include "core/files/npy.hpp"

#include <gtest/gtest.h>

#include "tests/support/file_builders.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

using test::as_bytes;
using test::bytes_of;
using test::npy;
using test::npy_of_header;
using test::zip;
using test::ZipMember;

FileArray parse(const std::string& file) { return parse_npy(as_bytes(file), "a.npy"); }
ArrayFile parse_zip(const std::string& file) { return parse_npz(as_bytes(file), "a.npz"); }

std::string error_of(const std::string& file) {
  return test::message_of<FileError>([&] { parse(file); });
}
/// Everything in a file, as a reader that needs all of it finds it.
void use_all(const ArrayFile& file) {
  for (const auto& [name, error] : file.unreadable) {
    file.get("p", name);
  }
}
std::string zip_error_of(const std::string& file) {
  return test::message_of<FileError>([&] { use_all(parse_zip(file)); });
}

TEST(Npy, ReadsEveryDtypeAndByteOrderMark) {
  struct Case {
    std::string descr;
    std::string name;
    std::size_t bytes;
  };
  for (const Case& c : std::vector<Case>{{"|b1", "bool", 1},
                                         {"|i1", "i8", 1},
                                         {"|u1", "u8", 1},
                                         {"<i2", "i16", 2},
                                         {"<u2", "u16", 2},
                                         {"<i4", "i32", 4},
                                         {"=u4", "u32", 4},
                                         {"<i8", "i64", 8},
                                         {"<u8", "u64", 8},
                                         {"<f2", "f16", 2},
                                         {"f4", "f32", 4},
                                         {"<f8", "f64", 8}}) {
    const FileArray array = parse(npy(c.descr, "(2,)", std::string(2 * c.bytes, '\x01')));
    EXPECT_EQ(array.dtype, c.name);
    EXPECT_EQ(array.shape, (std::vector<std::int64_t>{2}));
    EXPECT_EQ(array.bytes.size(), 2 * c.bytes);
  }
}

TEST(Npy, ReadsVersionsOneToThree) {
  for (const int major : {1, 2, 3}) {
    const FileArray array = parse(npy("<f4", "(1, 3)", bytes_of<float>({1, 2, 3}), false, major));
    EXPECT_EQ(array.to_floats("p", "t"), (std::vector<float>{1, 2, 3})) << major;
  }
  EXPECT_EQ(error_of(npy("<f4", "(0,)", "", false, 4)), "a.npy: version: 4.0: must be 1.0, 2.0 or 3.0");
}

TEST(Npy, ReadsScalarsEmptyArraysAndOtherSpellings) {
  EXPECT_EQ(parse(npy("<i8", "()", bytes_of<std::int64_t>({42}))).to_integers("p", "t"),
            (std::vector<std::int64_t>{42}));
  EXPECT_EQ(parse(npy("<f4", "(0, 7)", "")).size(), 0);
  EXPECT_EQ(parse(npy_of_header("{\"shape\":(2,1,),\"fortran_order\":True,\"descr\":\"<i4\"}        \n",
                                bytes_of<std::int32_t>({5, 6})))
                .to_integers("p", "t"),
            (std::vector<std::int64_t>{5, 6}));
}

TEST(Npy, ConvertsFortranOrder) {
  // a[i, j, k] = 100 i + 10 j + k, first index fastest.
  std::vector<std::int32_t> column_major;
  std::vector<std::int64_t> row_major;
  for (int k = 0; k < 4; ++k)
    for (int j = 0; j < 3; ++j)
      for (int i = 0; i < 2; ++i) column_major.push_back(100 * i + 10 * j + k);
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j)
      for (int k = 0; k < 4; ++k) row_major.push_back(100 * i + 10 * j + k);
  EXPECT_EQ(parse(npy("<i4", "(2, 3, 4)", bytes_of(column_major), true)).to_integers("p", "t"), row_major);
  EXPECT_EQ(parse(npy("<i4", "(3,)", bytes_of<std::int32_t>({1, 2, 3}), true)).to_integers("p", "t"),
            (std::vector<std::int64_t>{1, 2, 3}));
  EXPECT_EQ(parse(npy("<i4", "(3, 0)", "", true)).size(), 0);
}

TEST(Npy, RefusesTruncatedFiles) {
  const std::string whole = npy("<f4", "(2,)", bytes_of<float>({1, 2}));
  parse(whole);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_TRUE(test::contains(error_of(whole.substr(0, size)), {"a.npy: "})) << size;
  }
  EXPECT_EQ(error_of("PK"), "a.npy: magic: not an .npy array (no \\x93NUMPY at its start)");
  EXPECT_EQ(error_of(whole.substr(0, 9)), "a.npy: header length: file has 9 bytes and ends before it");
}

TEST(Npy, RefusesALyingHeaderLength) {
  std::string file = npy("<f4", "(2,)", bytes_of<float>({1, 2}));
  file[8] = '\xff';
  file[9] = '\xff';
  EXPECT_EQ(
      error_of(file),
      fmt::format("a.npy: header length: 65535: runs past the end of the file ({} bytes)", file.size()));
  file = npy("<f4", "(2,)", bytes_of<float>({1, 2}));
  file[8] = static_cast<char>(file[8] + 4);  // swallows one element
  EXPECT_TRUE(test::contains(error_of(file), {"a.npy: header: ", "expected nothing after '}'"}));
}

TEST(Npy, RefusesDataThatDoesNotMatchTheShape) {
  EXPECT_EQ(error_of(npy("<f4", "(2, 2)", std::string(15, 'x'))),
            "a.npy: data: 15 bytes, f32 [2, 2] needs 16");
  EXPECT_EQ(error_of(npy("<f4", "(2, 2)", std::string(17, 'x'))),
            "a.npy: data: 17 bytes, f32 [2, 2] needs 16");
  EXPECT_EQ(error_of(npy("<f4", "(4294967296, 4294967296)", "")),
            "a.npy: shape: f32 [4294967296, 4294967296] overflows int64");
  EXPECT_EQ(error_of(npy("<f4", "(4294967296, 4294967296, 0)", "")),
            "a.npy: shape: f32 [4294967296, 4294967296, 0] overflows int64");
}

TEST(Npy, RefusesDtypesItCannotHold) {
  EXPECT_EQ(error_of(npy(">f4", "(1,)", "1234")), "a.npy: descr: '>f4': big-endian data is not supported");
  EXPECT_EQ(error_of(npy("|O", "(1,)", "1234")), "a.npy: descr: '|O': Python objects are not supported");
  EXPECT_EQ(error_of(npy("<c8", "(1,)", "12345678")),
            "a.npy: descr: '<c8': must be one of b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 U S, little-endian");
  EXPECT_EQ(
      error_of(npy_of_header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }\n", "1234")),
      "a.npy: descr: structured dtypes are not supported");
}

TEST(Npy, RefusesHeadersNumpyDoesNotWrite) {
  const auto header_error = [](const std::string& dict) { return error_of(npy_of_header(dict, "")); };
  EXPECT_EQ(header_error("[1]"), "a.npy: header: '[1]' at byte 0: expected '{'");
  EXPECT_EQ(header_error("{'descr': '<f4', 'shape': (0,), }"),
            "a.npy: header: descr, fortran_order or shape is missing");
  EXPECT_EQ(header_error("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (0,), }"),
            "a.npy: header: key 'descr': must be descr, fortran_order and shape, once each");
  EXPECT_EQ(header_error("{'mode': 1}"),
            "a.npy: header: key 'mode': must be descr, fortran_order and shape, once each");
  EXPECT_TRUE(test::contains(header_error("{'fortran_order': 0}"), {"expected True or False"}));
  EXPECT_TRUE(test::contains(header_error("{descr: '<f4'}"), {"expected a quoted string"}));
  EXPECT_TRUE(test::contains(header_error("{'descr"), {"expected a closing quote"}));
  EXPECT_TRUE(test::contains(header_error("{'shape': (3)}"), {"expected ',' (a tuple of one has a comma)"}));
  EXPECT_TRUE(test::contains(header_error("{'shape': (3, x)}"), {"expected an extent"}));
  EXPECT_EQ(header_error("{'shape': (-3,)}"), "a.npy: shape: extent -3,)}: must not be negative");
  EXPECT_EQ(header_error("{'shape': (99999999999999999999,)}"),
            "a.npy: shape: extent 99999999999999999999,)}: does not fit int64");
}

TEST(Npz, ReadsStoredAndDeflatedMembers) {
  std::vector<float> many(300'000);  // more than one chunk
  for (std::size_t i = 0; i < many.size(); ++i) {
    many[i] = static_cast<float>(i % 1000);
  }
  const ArrayFile file =
      parse_zip(zip({{"expert_ids.npy", npy("<i4", "(1, 2)", bytes_of<std::int32_t>({3, 1}))},
                     {"gates.npy", npy("<f4", "(300000,)", bytes_of(many)), true}}));
  EXPECT_EQ(file.arrays.size(), 2U);
  EXPECT_EQ(file.get("p", "expert_ids").to_integers("p", "t"), (std::vector<std::int64_t>{3, 1}));
  EXPECT_EQ(file.get("p", "gates").to_floats("p", "t"), many);
}

TEST(Npz, ReadsNumpysOwnFiles) {
  const std::string path = test::source_path("tests/data/golden/router_tall.npz");
  const ArrayFile file = read_array_file(path);
  EXPECT_EQ(file.arrays.size(), 7U);
  for (const auto& [name, array] : file.arrays) {
    EXPECT_GT(array.size(), 0) << name;
  }
}

TEST(Npz, ReadsFromDiskByExtension) {
  const test::TempFolder folder;
  const std::string array = npy("<i4", "(2,)", bytes_of<std::int32_t>({7, 8}));
  EXPECT_EQ(read_array_file(folder.write("a.npy", array)).get("p", "").to_integers("p", ""),
            (std::vector<std::int64_t>{7, 8}));
  EXPECT_EQ(
      read_array_file(folder.write("a.npz", zip({{"ids.npy", array}}))).get("p", "ids").to_integers("p", ""),
      (std::vector<std::int64_t>{7, 8}));
}

TEST(Npz, RefusesWhatIsNoZipFile) {
  const std::string message = "a.npz: zip directory: not found: not a zip file, or truncated";
  EXPECT_EQ(zip_error_of(""), message);
  EXPECT_EQ(zip_error_of("not a zip"), message);
  EXPECT_EQ(zip_error_of(zip({}, 4)), "a.npz: zip directory: holds no members");
  EXPECT_EQ(zip_error_of(npy("<f4", "(0,)", "")), message);
}

TEST(Npz, RefusesEveryTruncation) {
  const std::string whole = zip({{"a.npy", npy("<f4", "(2,)", bytes_of<float>({1, 2})), true}});
  parse_zip(whole);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_TRUE(test::contains(zip_error_of(whole.substr(0, size)), {"a.npz: "})) << size;
  }
}

TEST(Npz, RefusesDamagedData) {
  const std::string array = npy("<f4", "(2,)", bytes_of<float>({1, 2}));
  EXPECT_EQ(zip_error_of(zip({{.name = "a.npy", .data = array, .crc = 12345}})),
            "a.npz: a.npy: CRC does not match: the data is damaged");
  std::string file = zip({{"a.npy", array}});
  file[file.find("NUMPY") + array.size() - 3] ^= 1;  // one bit of the payload
  EXPECT_EQ(zip_error_of(file), "a.npz: a.npy: CRC does not match: the data is damaged");
  file = zip({{"a.npy", array, true}});
  for (std::size_t i = 35; i < 60; ++i) {
    file[i] = '\xff';
  }
  EXPECT_TRUE(test::contains(zip_error_of(file), {"a.npz: a.npy: compressed data is damaged after "}));
}

TEST(Npz, RefusesLyingSizes) {
  const std::string array = npy("<f4", "(2,)", bytes_of<float>({1, 2}));
  const auto size = static_cast<std::int64_t>(array.size());
  EXPECT_EQ(
      zip_error_of(zip({{.name = "a.npy", .data = array, .deflate = true, .unpacked_bytes = size + 8}})),
      fmt::format("a.npz: a.npy: does not unpack to the {} bytes that the zip directory says, but to {}",
                  size + 8, size));
  EXPECT_TRUE(test::contains(
      zip_error_of(zip({{.name = "a.npy", .data = array, .deflate = true, .unpacked_bytes = size - 8}})),
      {"a.npz: a.npy: "}));
  EXPECT_EQ(zip_error_of(zip({{.name = "a.npy", .data = array, .unpacked_bytes = 4'000'000'000}})),
            fmt::format("a.npz: a.npy: 4000000000 bytes cannot have been packed into {}", size));
  const std::string file = zip({{.name = "a.npy", .data = array, .packed_bytes = 1'000'000}});
  EXPECT_EQ(
      zip_error_of(file),
      fmt::format(
          "a.npz: a.npy: 1000000 packed bytes after 0 before it do not lie in {} bytes: members overlap or "
          "run past the end",
          file.size()));
}

TEST(Npz, RefusesMoreThanTheLimitBeforeUnpackingAnything) {
  std::vector<ZipMember> members;
  for (const std::string name : {"a.npy", "b.npy", "c.npy"}) {
    members.push_back(
        {.name = name, .data = "x", .unpacked_bytes = 4'000'000'000, .packed_bytes = 4'000'000, .method = 8});
  }
  EXPECT_EQ(zip_error_of(zip(members, 16'000'000)),
            "a.npz: c.npy: 4000000000 bytes after 8000000000 before it: more than the limit of 8589934592 "
            "unpacked bytes");
}

TEST(Npz, RefusesMembersItCannotName) {
  const std::string array = npy("<f4", "(0,)", "");
  EXPECT_EQ(zip_error_of(zip({{"a.npy", array}, {"a.npy", array}})), "a.npz: a: appears twice");
  EXPECT_EQ(zip_error_of(zip({{"README", "x"}})), "a.npz: README: is not an .npy member");
  EXPECT_EQ(zip_error_of(zip({{.name = "a.npy", .data = array, .flags = 1}})), "a.npz: a.npy: is encrypted");
  EXPECT_EQ(zip_error_of(zip({{.name = "a.npy", .data = array, .method = 12}})),
            "a.npz: a.npy: compression method 12: must be 0 (stored) or 8 (deflated)");
}

TEST(Npz, NamesTheMemberWhoseArrayIsWrong) {
  EXPECT_EQ(zip_error_of(zip({{"gates.npy", npy("<f4", "(3,)", "1234")}})),
            "a.npz: gates.data: 4 bytes, f32 [3] needs 12");
  EXPECT_EQ(zip_error_of(zip({{"gates.npy", "hello"}})),
            "a.npz: gates.magic: not an .npy array (no \\x93NUMPY at its start)");
}

TEST(Npz, PassesOverMembersThatNobodyAsksFor) {
  const std::string array = npy("<i4", "(2,)", bytes_of<std::int32_t>({7, 8}));
  const ArrayFile file = parse_zip(zip({{"ids.npy", array},
                                        {"name.npy", npy("<U5", "()", std::string(20, 'x'))},
                                        {"objects.npy", npy("|O", "(1,)", "1234")},
                                        {"folder/", ""},
                                        {"README", "x"},
                                        {"ids", "an older form of the same"},
                                        {.name = "secret.npy", .data = array, .flags = 1},
                                        {.name = "zstd.npy", .data = array, .method = 93},
                                        {.name = "damaged.npy", .data = array, .crc = 12345}}));
  EXPECT_EQ(file.get("p", "ids").to_integers("p", "ids"), (std::vector<std::int64_t>{7, 8}));
  EXPECT_EQ(file.arrays.size(), 2U);  // and a text
  for (const std::string name : {"objects", "folder/", "README", "secret", "zstd", "damaged"}) {
    EXPECT_TRUE(file.has(name)) << name << " is there: a reader that wants it is told why it cannot have it";
    EXPECT_TRUE(
        test::contains(test::message_of<FileError>([&] { file.get("p", name); }), {"a.npz: " + name}));
  }
}

TEST(Npy, TakesOneTextOfAFixedLength) {
  const auto text_of = [](std::string_view descr, std::string_view shape, const std::string& data) {
    return parse(npy(descr, shape, data)).to_text("a.npy", "text");
  };
  EXPECT_EQ(text_of("|S5", "()", std::string("abc\0\0", 5)), "abc");
  EXPECT_EQ(text_of("<U3", "()", bytes_of<std::uint32_t>({'g', 0xE4, 0x1F600})), "g\xC3\xA4\xF0\x9F\x98\x80");
  EXPECT_EQ(text_of("<U3", "()", bytes_of<std::uint32_t>({'g', 0, 0})), "g");
  const auto error = [&](std::string_view descr, std::string_view shape, const std::string& data) {
    return test::message_of<FileError>([&] { text_of(descr, shape, data); });
  };
  EXPECT_EQ(error("<U1", "(2,)", bytes_of<std::uint32_t>({'a', 'b'})),
            "a.npy: text: U1 [2]: must be one text");
  EXPECT_EQ(error("<i4", "()", bytes_of<std::int32_t>({1})), "a.npy: text: i32 []: must be one text");
  EXPECT_EQ(error("<U1", "()", bytes_of<std::uint32_t>({0xD800})), "a.npy: text: is not a valid text");
  EXPECT_EQ(error("<U1", "()", bytes_of<std::uint32_t>({0x7fffffff})), "a.npy: text: is not a valid text");
  EXPECT_EQ(error("|S1", "()", "\xff"), "a.npy: text: is not a valid text");
  EXPECT_TRUE(test::contains(error("<U0", "()", ""), {"descr: '<U0'"}));
  EXPECT_TRUE(test::contains(error("<U99999999999", "()", ""), {"descr: '<U99999999999'"}));
  EXPECT_TRUE(test::contains(
      test::message_of<FileError>([] { parse(npy("<U2", "(1,)", "12345678")).to_integers("p", "x"); }),
      {"dtype U2: must be an integer type"}));
}

TEST(Npz, ReadsPython2sExtentsAndNamesNumpysBfloat16) {
  EXPECT_EQ(parse(npy("<i4", "(2L, 1L)", bytes_of<std::int32_t>({5, 6}))).shape,
            (std::vector<std::int64_t>{2, 1}));
  EXPECT_EQ(parse(npy("<i4", "(2L,)", bytes_of<std::int32_t>({5, 6}))).shape, (std::vector<std::int64_t>{2}));
  EXPECT_TRUE(test::contains(error_of(npy("<i4", "(2LL,)", "12345678")), {"expected"}));
  EXPECT_TRUE(
      test::contains(error_of(npy("<V2", "(1,)", "12")), {"a.npy: descr: '<V2'", "bfloat16", "float32"}));
}

TEST(Npz, RefusesADirectoryThatCountsMoreEntriesThanItHas) {
  std::string file = zip({{"a.npy", npy("<f4", "(0,)", "")}});
  file[file.size() - 14] = 2;  // entries on this disk
  file[file.size() - 12] = 2;  // entries in all
  EXPECT_EQ(zip_error_of(file), "a.npz: zip directory: contradicts itself");
}

TEST(FuzzSeeds, AreReadUnlessTheirNameSaysBad) {
  std::size_t seeds = 0;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(test::source_path("tests/fuzz/corpus"))) {
    const auto extension = entry.path().extension();
    if (extension != ".npy" && extension != ".npz" && extension != ".safetensors") {
      continue;  // texts are no arrays
    }
    ++seeds;
    if (entry.path().filename().string().starts_with("bad_")) {
      EXPECT_THROW(use_all(read_array_file(entry.path())), FileError) << entry.path();
    } else {
      EXPECT_NO_THROW(use_all(read_array_file(entry.path()))) << entry.path();
    }
  }
  EXPECT_GT(seeds, 10U);
}

}  // namespace
}  // namespace moescope
