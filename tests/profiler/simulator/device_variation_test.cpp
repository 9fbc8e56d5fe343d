#include "profiler/simulator/device_variation.hpp"

#include <gtest/gtest.h>

#include "core/base/error.hpp"
#include "tests/support/devices.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

using test::h100;

TEST(DeviceVariation, ChangesWhatIsAskedForAndSaysSoInNameAndSource) {
  const DeviceSpec base = h100();
  const DeviceSpec varied = vary_device(base, "l2_bytes=8MiB@hbm_bytes_per_s=x1.5@l2_replacement=random");
  EXPECT_EQ(varied.l2_bytes, 8 << 20);
  EXPECT_DOUBLE_EQ(varied.hbm_read_bytes_per_s, 1.5 * base.hbm_read_bytes_per_s);
  EXPECT_DOUBLE_EQ(varied.hbm_write_bytes_per_s, 1.5 * base.hbm_write_bytes_per_s);
  EXPECT_EQ(varied.l2_replacement, Replacement::kRandom);
  EXPECT_EQ(varied.l2_bytes_per_s, base.l2_bytes_per_s);
  EXPECT_EQ(varied.name, base.name + ", l2_bytes=8MiB, hbm_bytes_per_s=x1.5, l2_replacement=random");
  EXPECT_EQ(varied.sources.at("l2_bytes"),
            "what-if: asked for; without: 52428800, " + base.sources.at("l2_bytes"));
  EXPECT_EQ(varied.sources.at("num_sms"), base.sources.at("num_sms"));
}

TEST(DeviceVariation, PeaksOfTheCoresFollowSmsAndClockUnlessNamed) {
  const DeviceSpec base = h100();
  const DeviceSpec half = vary_device(base, "num_sms=66@sm_clock_hz=x2");
  EXPECT_EQ(half.num_sms, 66);
  EXPECT_DOUBLE_EQ(half.tensor_bf16_flop_per_s, base.tensor_bf16_flop_per_s);
  EXPECT_DOUBLE_EQ(half.fp32_flop_per_s, base.fp32_flop_per_s);
  const DeviceSpec named = vary_device(base, "num_sms=66@tensor_bf16_flop_per_s=500T");
  EXPECT_DOUBLE_EQ(named.tensor_bf16_flop_per_s, 5e14);
  EXPECT_DOUBLE_EQ(named.fp32_flop_per_s, base.fp32_flop_per_s / 2);
}

TEST(DeviceVariation, RefusesWhatCannotWorkAndNamesIt) {
  const auto error_of = [](std::string_view changes) {
    return test::error_text<InvalidArgument>([&] { vary_device(h100(), changes); });
  };
  EXPECT_EQ(error_of("l2_bytes"), "device = l2_bytes: \"l2_bytes\" is not KEY=VALUE");
  EXPECT_NE(error_of("l3_bytes=1").find("l3_bytes is not one of hbm_bytes_per_s, num_sms, "),
            std::string::npos);
  EXPECT_EQ(error_of("num_sms=1@num_sms=2"), "device = num_sms=1@num_sms=2: num_sms is changed twice");
  EXPECT_NE(error_of("num_sms=10.5").find("values.num_sms: 10.5: must be a whole number"), std::string::npos);
  EXPECT_NE(error_of("num_sms=many").find("num_sms = many: must be a number"), std::string::npos);
  EXPECT_NE(error_of("num_sms=1e999").find("num_sms = 1e999: must be a number"), std::string::npos);
  EXPECT_NE(error_of("l2_bytes=1GB").find("l2_bytes = 1GB: must be a number"), std::string::npos);
  for (const char* bad :
       {"010", "0x10", "+1", "1e", "MiB", "01MiB", "x", "x01", "x0x1", "nan", "infK", "1 M"}) {
    EXPECT_NE(error_of(std::string("l2_bytes=") + bad).find(std::string("l2_bytes = ") + bad),
              std::string::npos)
        << bad;
  }
  EXPECT_NE(error_of("l2_replacement=\xff").find("must be one of"), std::string::npos) << "no UTF-8";
  EXPECT_NE(error_of("l2_bytes=0").find("values.l2_bytes: 0: must be in"), std::string::npos);
  EXPECT_NE(error_of("l2_halves=three").find("must be one of one, "), std::string::npos);
  EXPECT_NE(error_of(""), "(no error)");
}

TEST(DeviceVariation, ReadsAnAxis) {
  const VariedKey varied = parse_varied_key("l2_bytes=8MiB,x2");
  EXPECT_EQ(varied.key, "l2_bytes");
  EXPECT_EQ(varied.values, (std::vector<std::string>{"8MiB", "x2"}));
  for (const char* bad : {"", "l2_bytes", "l2_bytes=", "=1", "l2_bytes=1,,2"}) {
    EXPECT_THROW(parse_varied_key(bad), InvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace moescope
