// What moescope_python_calls() gives to Python: a tuple of functions.
#include <array>
#include <utility>

#include "capi/python/calls.hpp"
#include "moescope.h"

namespace moescope::capi::python {
namespace {

Framework framework;
bool enabled = false;

/// attach(capsule, Tensor, Parameter, empty_like, deterministic, threads, grad_enabled, stands_between,
/// direct): what Framework is made of. True where PyTorch's table is one that this knows.
Object* attach(Object* /*self*/, Object* const* given, std::ptrdiff_t count) {
  const Interpreter& python = *Interpreter::running();
  constexpr std::ptrdiff_t kGiven = 9;
  const auto* const exchange =
      count == kGiven ? static_cast<const DlExchange*>(python.capsule(given[0], DlExchange::kCapsule))
                      : nullptr;
  if (exchange == nullptr || exchange->major != DlExchange::kMajor || exchange->view == nullptr ||
      exchange->stream == nullptr) {
    python.clear_error();
    return python.new_none();
  }
  for (std::ptrdiff_t i = 0; i < kGiven; ++i) {
    python.inc_ref(given[i]);
  }
  framework = {.python = &python,
               .exchange = exchange,
               .tensor_type = given[1],
               .parameter_type = given[2],
               .empty_like = given[3],
               .deterministic = given[4],
               .threads = given[5],
               .grad_enabled = given[6],
               .stands_between = given[7],
               .direct = given[8],
               .requires_grad = python.intern("requires_grad")};
  enabled = framework.requires_grad != nullptr;
  python.inc_ref(python.yes);
  return python.yes;
}

/// enable(truth): whether calls find plans; without, every answer is None.
Object* enable(Object* /*self*/, Object* const* given, std::ptrdiff_t count) {
  const Interpreter& python = *Interpreter::running();
  enabled = framework.python != nullptr && count == 1 && python.is_true(given[0]) == 1;
  return python.new_none();
}

/// learn(form, arguments, shape's address, execution's address, workspace or None, outputs, kept)
Object* learn(Object* /*self*/, Object* const* given, std::ptrdiff_t count) {
  const Interpreter& python = *Interpreter::running();
  constexpr std::ptrdiff_t kGiven = 7;
  if (!enabled || count != kGiven) {
    return python.new_none();
  }
  constexpr std::ptrdiff_t kMostArguments = 16;
  const long long form = python.integer(given[0]);
  const std::ptrdiff_t length = python.length(given[1]);
  const auto* const shape = static_cast<const moescope_shape*>(python.pointer(given[2]));
  const auto* const where = static_cast<const moescope_execution*>(python.pointer(given[3]));
  if (form < 0 || form >= kForms || length < 0 || length > kMostArguments || shape == nullptr ||
      where == nullptr) {
    python.clear_error();
    return python.new_none();
  }
  std::array<Reference, kMostArguments> held;
  std::array<Object*, kMostArguments> arguments{};
  for (std::ptrdiff_t i = 0; i < length; ++i) {
    const auto at = static_cast<std::size_t>(i);
    held[at] = Reference(python, python.item(given[1], i));
    arguments[at] = held[at].get();
    if (arguments[at] == nullptr) {
      return nullptr;
    }
  }
  const bool kept = learn_plan(framework, static_cast<FormIndex>(form), arguments.data(), length, *shape,
                               *where, given[4], given[5], given[6]);
  if (!kept) {
    return python.new_none();
  }
  python.inc_ref(python.yes);
  return python.yes;
}

/// The kernel alone: neither autograd nor who stands between is asked for.
template <FormIndex kForm>
Object* kernel(Object* /*self*/, Object* const* given, std::ptrdiff_t count) {
  const Interpreter& python = *Interpreter::running();
  Arguments arguments;
  return enabled && read_arguments(framework, kForm, given, count, arguments)
             ? run_plan(framework, kForm, given, arguments)
             : python.new_none();
}

/// Whether one of the tensors wants a gradient: 1 or 0, or -1 where Python has to see to the call.
int wants_gradient(Object* const* given, int tensors) {
  const Interpreter& python = *framework.python;
  bool wanted = false;
  for (int i = 0; i < tensors; ++i) {
    if (given[i] == python.none) {
      continue;
    }
    const Reference type(python, python.type_of(given[i]));
    if (type.get() != framework.tensor_type && type.get() != framework.parameter_type) {
      return -1;
    }
    if (!wanted) {
      const Reference flag(python, python.get_attribute(given[i], framework.requires_grad));
      wanted = flag.get() == python.yes;
    }
  }
  const std::ptrdiff_t asked = python.length(framework.stands_between);
  for (std::ptrdiff_t i = 0; i <= asked; ++i) {
    if (i == asked && !wanted) {
      return 0;
    }
    const Reference function(python, i < asked ? python.item(framework.stands_between, i) : nullptr);
    const Reference answer(
        python, python.call(i < asked ? function.get() : framework.grad_enabled, nullptr, 0, nullptr));
    const int truth = answer ? python.is_true(answer.get()) : -1;
    if (i == asked) {
      wanted = truth == 1;
    } else if (truth != 0) {
      python.clear_error();
      return -1;
    }
  }
  return wanted ? 1 : 0;
}

/// The kernel, or autograd's function around it, where nobody stands between; else None.
template <FormIndex kForm>
Object* road(Object* /*self*/, Object* const* given, std::ptrdiff_t count) {
  const Interpreter& python = *Interpreter::running();
  Arguments arguments;
  if (!enabled || count < kFormTable[kForm].tensors) {
    return python.new_none();
  }
  const int wanted = wants_gradient(given, kFormTable[kForm].tensors);
  if (wanted < 0 || !read_arguments(framework, kForm, given, count, arguments)) {
    return python.new_none();
  }
  if (wanted == 0) {
    return run_plan(framework, kForm, given, arguments);
  }
  if (Plans::of_thread().find(arguments.key) == nullptr) {
    return python.new_none();
  }
  const Reference direct(python, python.item(framework.direct, kForm));
  return direct && direct.get() != python.none
             ? python.call(direct.get(), given, static_cast<std::size_t>(count), nullptr)
             : python.new_none();
}

template <std::size_t... kAt>
constexpr auto methods_of(std::index_sequence<kAt...> /*forms*/) {
  return std::array<Method, 3 + 2 * sizeof...(kAt)>{
      Method{"attach", attach, kFastCall, nullptr}, Method{"enable", enable, kFastCall, nullptr},
      Method{"learn", learn, kFastCall, nullptr},
      Method{kFormTable[kAt].name, kernel<static_cast<FormIndex>(kAt)>, kFastCall, nullptr}...,
      Method{kFormTable[kAt].name, road<static_cast<FormIndex>(kAt)>, kFastCall, nullptr}...};
}
constexpr auto kMethods = methods_of(std::make_index_sequence<kForms>());

}  // namespace
}  // namespace moescope::capi::python

void* moescope_python_calls(void) {
  using namespace moescope::capi::python;
  const Interpreter* const python = Interpreter::running();
  if (python == nullptr) {
    return nullptr;
  }
  Reference tuple(*python, python->new_tuple(static_cast<std::ptrdiff_t>(kMethods.size())));
  for (std::size_t i = 0; tuple && i < kMethods.size(); ++i) {
    Object* const function = python->new_function(&kMethods[i], nullptr, nullptr);
    if (function == nullptr || python->set_item(tuple.get(), static_cast<std::ptrdiff_t>(i), function) != 0) {
      return nullptr;
    }
  }
  return tuple.release();
}
