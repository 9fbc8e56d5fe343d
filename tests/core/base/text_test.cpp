#include <gtest/gtest.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/base/command_text.hpp"
#include "core/base/utf8.hpp"

namespace moescope {
namespace {

bool json_takes(const std::string& text) {
  try {
    (void)nlohmann::json(text).dump();
    return true;
  } catch (const nlohmann::json::type_error&) {
    return false;
  }
}

TEST(Utf8, IsWhatTheJsonLibraryTakes) {
  // Every lead byte with every second byte, and what may follow; nlohmann's decoder is not ours.
  for (unsigned a = 0; a < 256; ++a) {
    for (unsigned b = 0; b < 256; ++b) {
      for (const char* rest : {"", "\x80", "\x80\x80", "\xBF\xBF", "x"}) {
        const std::string text = std::string{static_cast<char>(a), static_cast<char>(b)} + rest;
        ASSERT_EQ(valid_utf8(text) == text, json_takes(text)) << a << ' ' << b << ' ' << rest;
        ASSERT_TRUE(json_takes(valid_utf8(text)));
      }
    }
  }
  EXPECT_EQ(valid_utf8("a\xFF\xC3\xA4\xC3"), "a\xEF\xBF\xBD\xC3\xA4\xEF\xBF\xBD");
}

TEST(ShellWord, IsReadBackByAShell) {
  for (const std::string& text :
       {std::string("plain"), std::string(""), std::string("a b'c\"d\\$e\nf"), std::string("\xC3\xA4"),
        std::string("\xFF/it's \\ 12\xFE"
                    "7"),
        std::string("\x80\n")}) {
    const std::string word = shell_word(text);
    EXPECT_EQ(valid_utf8(word), word);
    const std::string command = "bash -c " + shell_word("printf %s " + word);
    FILE* pipe = ::popen(command.c_str(), "r");
    ASSERT_NE(pipe, nullptr);
    std::string read(64, '\0');
    read.resize(std::fread(read.data(), 1, read.size(), pipe));
    ::pclose(pipe);
    EXPECT_EQ(read, text) << word;
  }
}

}  // namespace
}  // namespace moescope
