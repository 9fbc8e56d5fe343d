#include "capi/python/plans.hpp"

#include <algorithm>
#include <utility>

namespace moescope::capi::python {

bool Key::operator==(const Key& other) const { return std::ranges::equal(words(), other.words()); }

std::size_t Key::Hash::operator()(const Key& key) const {
  std::uint64_t hash = 0x9e3779b97f4a7c15;
  for (const std::uint64_t word : key.words()) {
    hash = (hash ^ word) * 0xff51afd7ed558ccd;
    hash ^= hash >> 32;
  }
  return hash;
}

Plan::~Plan() {
  for (const Output& one : output) {
    if (one.kept != nullptr) {
      python_.dec_ref(one.kept);
    }
  }
  if (workspace != nullptr) {
    python_.dec_ref(workspace);
  }
}

Plans& Plans::of_thread() {
  thread_local auto* const plans = new Plans;  // left alone at the thread's end: the interpreter may be gone
  return *plans;
}

std::shared_ptr<const Plan> Plans::find(const Key& key) const {
  const auto found = known_.find(key);
  return found == known_.end() ? nullptr : found->second;
}

void Plans::keep(const Key& key, std::shared_ptr<const Plan> plan) {
  if (known_.size() >= kMost) {
    known_.clear();
  }
  known_.insert_or_assign(key, std::move(plan));
}

}  // namespace moescope::capi::python
