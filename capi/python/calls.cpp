#include "capi/python/calls.hpp"

#include <cstring>
#include <memory>
#include <string_view>
#include <utility>

namespace moescope::capi::python {
namespace {

constexpr std::uintptr_t kCudaAlignment = 16;       // kernels load so much at a time
constexpr std::uintptr_t kWorkspaceAlignment = 64;  // of the interface
constexpr int kMostRank = 2;

bool is_dense(const DlTensor& view) {
  std::int64_t expected = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    if (view.extents[i] == 0) {
      return true;
    }
    if (view.extents[i] != 1 && view.strides[i] != expected) {
      return false;
    }
    expected *= view.extents[i];
  }
  return true;
}

void* address_of(const DlTensor& view) { return static_cast<std::byte*>(view.data) + view.byte_offset; }

bool view_of(const Framework& framework, Object* tensor, DlTensor& view) {
  if (framework.exchange->view(tensor, &view) != 0) {
    framework.python->clear_error();
    return false;
  }
  return view.rank <= kMostRank;
}

std::uint64_t type_word(const DlTensor& view) {
  return std::uint64_t{view.code} << 56 | std::uint64_t{view.bits} << 48 |
         static_cast<std::uint64_t>(view.rank) << 40 | static_cast<std::uint64_t>(view.device_type) << 32 |
         static_cast<std::uint32_t>(view.device_index);
}

bool has_elements(const DlTensor& view) {
  for (int i = 0; i < view.rank; ++i) {
    if (view.extents[i] == 0) {
      return false;
    }
  }
  return true;
}

/// The number of a function without arguments; false where it failed.
bool ask(const Framework& framework, Object* function, long long& answer) {
  const Interpreter& python = *framework.python;
  const Reference made(python, python.call(function, nullptr, 0, nullptr));
  answer = made ? python.integer(made.get()) : -1;
  if (python.error() != nullptr) {
    python.clear_error();
    return false;
  }
  return true;
}

bool add_text(const Interpreter& python, Object* object, Key& key) {
  std::ptrdiff_t size = 0;
  const char* const text = python.text(object, &size);
  constexpr std::ptrdiff_t kMost = 16;
  if (text == nullptr || size > kMost) {
    python.clear_error();
    return false;
  }
  std::array<std::uint64_t, 2> words{};
  std::memcpy(words.data(), text, static_cast<std::size_t>(size));
  return key.add(static_cast<std::uint64_t>(size)) && key.add(words[0]) && key.add(words[1]);
}

bool add_integer(const Interpreter& python, Object* object, Key& key) {
  const long long value = python.integer(object);
  if (value == -1 && python.error() != nullptr) {
    python.clear_error();
    return false;
  }
  return key.add(static_cast<std::uint64_t>(value));
}

bool add_truths(const Interpreter& python, Object* sequence, Key& key) {
  const std::ptrdiff_t length = python.length(sequence);
  if (length < 0 || length > kMostOutputs) {
    python.clear_error();
    return false;
  }
  std::uint64_t bits = 0;
  for (std::ptrdiff_t i = 0; i < length; ++i) {
    const Reference one(python, python.item(sequence, i));
    const int truth = one ? python.is_true(one.get()) : -1;
    if (truth < 0) {
      python.clear_error();
      return false;
    }
    bits |= static_cast<std::uint64_t>(truth) << i;
  }
  return key.add(static_cast<std::uint64_t>(length) << 32 | bits);
}

bool add_option(const Interpreter& python, char kind, Object* object, Key& key) {
  return kind == 's'   ? add_text(python, object, key)
         : kind == 'l' ? add_truths(python, object, key)
                       : add_integer(python, object, key);
}

moescope_layer_inputs inputs_of(void* const* address, const void* bound) {
  return {.struct_bytes = sizeof(moescope_layer_inputs),
          .x = address[0],
          .row_logits = address[1],
          .col_logits = address[2],
          .w_in = address[3],
          .w_out = address[4],
          .shared_gate = address[5],
          .shared_up = address[6],
          .shared_down = address[7],
          .expert_bound = static_cast<const float*>(bound),
          .strip_counts = nullptr};
}

moescope_layer_gradients gradients_of(void* const* out) {
  return {.struct_bytes = sizeof(moescope_layer_gradients),
          .x = out[0],
          .row_logits = out[1],
          .col_logits = out[2],
          .w_in = out[3],
          .w_out = out[4],
          .shared_gate = out[5],
          .shared_up = out[6],
          .shared_down = out[7]};
}

moescope_status invoke(FormIndex form, const moescope_shape& shape, const moescope_execution& where,
                       void* const* in, void* const* out) {
  switch (form) {
    case kSelect:  // the package returns gates, ids, scores
      return moescope_select_forward(&shape, &where, in[0], in[1], out[1], out[0], out[2]);
    case kSelectBackward:
      return moescope_select_backward(&shape, &where, in[0], in[1], in[2], in[3], out[0], out[1]);
    case kExperts:
      return moescope_experts_forward(&shape, &where, in[0], in[1], in[2], in[3], in[4], out[0]);
    case kExpertsBackward:
      return moescope_experts_backward(&shape, &where, in[0], in[1], in[2], in[3], in[4], in[5], out[0],
                                       out[1], out[2], out[3]);
    case kMlp:
      return moescope_mlp_forward(&shape, &where, in[0], in[1], in[2], in[3], out[0]);
    case kMlpBackward:
      return moescope_mlp_backward(&shape, &where, in[0], in[1], in[2], in[3], in[4], out[0], out[1], out[2],
                                   out[3]);
    case kLayer: {
      const moescope_layer_inputs inputs = inputs_of(in, nullptr);
      return moescope_layer_forward(&shape, &where, &inputs, out[0], out[1], out[2]);
    }
    case kLayerOutput: {
      const moescope_layer_inputs inputs = inputs_of(in, in[8]);
      return moescope_layer_forward(&shape, &where, &inputs, out[0], nullptr, nullptr);
    }
    case kLayerBackward: {
      const moescope_layer_inputs inputs = inputs_of(in, nullptr);
      const moescope_layer_gradients gradients = gradients_of(out);
      return moescope_layer_backward(&shape, &where, &inputs, in[8], in[9], in[10], &gradients);
    }
    default: {
      const moescope_layer_inputs inputs = inputs_of(in, nullptr);
      const moescope_layer_gradients gradients = gradients_of(out);
      return moescope_layer_backward(&shape, &where, &inputs, nullptr, nullptr, in[8], &gradients);
    }
  }
}

}  // namespace

bool read_arguments(const Framework& framework, FormIndex form, Object* const* given, std::ptrdiff_t count,
                    Arguments& arguments) {
  const Interpreter& python = *framework.python;
  const Form& own = kFormTable[form];
  const std::string_view options = own.options;
  if (count != own.tensors + static_cast<std::ptrdiff_t>(options.size())) {
    return false;
  }
  long long deterministic = 0;
  if (!ask(framework, framework.deterministic, deterministic)) {
    return false;
  }
  Key& key = arguments.key;
  bool room = key.add(static_cast<std::uint64_t>(form) << 8 | static_cast<std::uint64_t>(deterministic));
  for (int i = 0; i < own.tensors; ++i) {
    auto& address = arguments.address[static_cast<std::size_t>(i)];
    if (given[i] == python.none) {
      address = nullptr;
      room = room && key.add(0);
      continue;
    }
    DlTensor view;
    if (!view_of(framework, given[i], view) || !is_dense(view)) {
      return false;
    }
    address = address_of(view);
    if (view.device_type == kDlCuda && reinterpret_cast<std::uintptr_t>(address) % kCudaAlignment != 0) {
      return false;
    }
    if (i == 0) {
      arguments.device_type = view.device_type;
      arguments.device_index = view.device_index;
    }
    room = room && key.add(type_word(view));
    for (int k = 0; k < view.rank; ++k) {
      room = room && key.add(static_cast<std::uint64_t>(view.extents[k]));
    }
  }
  if (arguments.device_type == kDlCpu) {
    long long threads = 0;
    if (!ask(framework, framework.threads, threads)) {
      return false;
    }
    room = room && key.add(static_cast<std::uint64_t>(threads));
  }
  for (std::size_t i = 0; i < options.size(); ++i) {
    room = room && add_option(python, options[i], given[own.tensors + static_cast<int>(i)], key);
  }
  return room;
}

Object* run_plan(const Framework& framework, FormIndex form, Object* const* given,
                 const Arguments& arguments) {
  const Interpreter& python = *framework.python;
  const std::shared_ptr<const Plan> plan = Plans::of_thread().find(arguments.key);
  if (plan == nullptr) {
    return python.new_none();
  }
  const auto make = [&](Object* like, void*& address) {
    Reference made(python, python.call(framework.empty_like, &like, 1, nullptr));
    DlTensor view;
    if (made && framework.exchange->view(made.get(), &view) == 0) {
      address = has_elements(view) ? address_of(view) : nullptr;
      return made;
    }
    return Reference();
  };
  std::array<void*, kMostOutputs> out{};
  Reference result;
  if (kFormTable[form].many) {
    Reference tuple(python, python.new_tuple(plan->outputs));
    for (int i = 0; tuple && i < plan->outputs; ++i) {
      const Output& one = plan->output[static_cast<std::size_t>(i)];
      Reference made = make(one.like >= 0 ? given[one.like] : one.kept, out[static_cast<std::size_t>(i)]);
      if (!made || python.set_item(tuple.get(), i, made.release()) != 0) {
        return nullptr;
      }
    }
    result = std::move(tuple);
  } else {
    const Output& one = plan->output[0];
    result = make(one.like >= 0 ? given[one.like] : one.kept, out[0]);
  }
  if (!result) {
    return nullptr;
  }
  moescope_execution where = plan->where;
  Reference workspace;
  if (plan->workspace != nullptr) {
    void* address = nullptr;
    workspace = make(plan->workspace, address);
    if (!workspace) {
      return nullptr;
    }
    const auto aligned = (reinterpret_cast<std::uintptr_t>(address) + kWorkspaceAlignment - 1) /
                         kWorkspaceAlignment * kWorkspaceAlignment;
    where.workspace = reinterpret_cast<void*>(aligned);
  }
  if (arguments.device_type == kDlCuda &&
      framework.exchange->stream(kDlCuda, arguments.device_index, &where.stream) != 0) {
    return nullptr;
  }
  moescope_status status = MOESCOPE_OK;
  {
    const Unlocked others(python);
    status = invoke(form, plan->shape, where, arguments.address.data(), out.data());
  }
  return status == MOESCOPE_OK ? result.release() : python.new_none();
}

bool learn_plan(const Framework& framework, FormIndex form, Object* const* given, std::ptrdiff_t count,
                const moescope_shape& shape, const moescope_execution& where, Object* workspace,
                Object* outputs, Object* kept) {
  const Interpreter& python = *framework.python;
  Arguments arguments;
  const std::ptrdiff_t made = python.length(outputs);
  if (made < 1 || made > kMostOutputs || python.length(kept) != made ||
      !read_arguments(framework, form, given, count, arguments)) {
    return false;
  }
  const auto plan = std::make_shared<Plan>(python);
  plan->shape = shape;
  plan->where = where;
  plan->where.workspace = nullptr;
  plan->where.stream = nullptr;
  plan->outputs = static_cast<int>(made);
  for (int i = 0; i < plan->outputs; ++i) {
    const Reference output(python, python.item(outputs, i));
    DlTensor view;
    if (!output || !view_of(framework, output.get(), view)) {
      return false;
    }
    Output& one = plan->output[static_cast<std::size_t>(i)];
    for (int k = 0; k < kFormTable[form].tensors && one.like < 0; ++k) {
      DlTensor argument;
      const bool alike = given[k] != python.none && view_of(framework, given[k], argument) &&
                         type_word(argument) == type_word(view) &&
                         std::memcmp(argument.extents, view.extents,
                                     static_cast<std::size_t>(view.rank) * sizeof(std::int64_t)) == 0;
      one.like = alike ? k : -1;
    }
    if (one.like < 0) {
      one.kept = python.item(kept, i);
    }
  }
  if (workspace != python.none) {
    python.inc_ref(workspace);
    plan->workspace = workspace;
  }
  Plans::of_thread().keep(arguments.key, plan);
  return true;
}

}  // namespace moescope::capi::python
