#include "core/systems/system_traits.hpp"

#include <gtest/gtest.h>

#include <set>

#include "core/base/error.hpp"
#include "core/systems/system_cost.hpp"
#include "core/systems/system_options.hpp"
#include "tests/support/error_text.hpp"

namespace moescope {
namespace {

TEST(SystemTraits, NamesAndLooksAreTheirOwn) {
  std::set<std::string_view> names;
  std::set<std::string_view> looks;
  for (const SystemTraits& traits : system_traits()) {
    EXPECT_TRUE(names.insert(traits.name).second) << traits.name;
    EXPECT_TRUE(looks.insert(traits.colour).second) << traits.name;
    EXPECT_TRUE(looks.insert(traits.marker).second) << traits.name;
    EXPECT_EQ(&traits_of(traits.system), &traits);
    EXPECT_FALSE(traits.schedules.empty()) << traits.name;
    EXPECT_FALSE(traits.gate_modes.empty()) << traits.name;
    EXPECT_EQ(traits.router == RouterKind::kNone, traits.experts == ExpertKind::kNone) << traits.name;
  }
  EXPECT_EQ(systems().size(), system_traits().size());
}

TEST(SystemTraits, StagesFollowFromTheRouter) {
  for (const SystemTraits& traits : system_traits()) {
    if (traits.system == System::kOmniMoe) {
      EXPECT_TRUE(test::error_text<InternalError>([&] { system_stages(traits.system); }) != "(no error)");
      continue;
    }
    const auto stages = system_stages(traits.system);
    const auto has = [&](Stage stage) {
      return std::find(stages.begin(), stages.end(), stage) != stages.end();
    };
    EXPECT_EQ(has(Stage::kRouterProject), traits.router != RouterKind::kNone) << traits.name;
    EXPECT_EQ(has(Stage::kSharedMlp), traits.dense_branch) << traits.name;
    EXPECT_EQ(has(Stage::kExpertCombine), traits.experts == ExpertKind::kValue) << traits.name;
    EXPECT_EQ(system_stages(traits.system, true).size(),
              stages.size() - (traits.router != RouterKind::kNone ? 2 : 0));
  }
}

TEST(SystemTraits, OptionsThatNobodyOwnsAreEveryones) {
  EXPECT_TRUE(system_has(System::kGShard, "top_k"));
  EXPECT_TRUE(system_has(System::kGShard, "expert_size"));
  EXPECT_FALSE(system_has(System::kGShard, "heads"));
  EXPECT_FALSE(system_has(System::kPkm, "activation"));
  EXPECT_TRUE(system_has(System::kOmniMoe, "tile_tokens"));
  const System gshard = System::kGShard;
  EXPECT_EQ(test::error_text<InvalidArgument>([&] {
              require_system_has({&gshard, 1}, "heads", "3");
            }),
            "heads = 3: is for pkm, peer; gshard has none");
}

}  // namespace
}  // namespace moescope
