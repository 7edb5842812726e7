// Calls a kernel with what the test gives for each of its parameters. Included after the kernel's source.
#pragma once

#include <cstddef>
#include <tuple>

namespace machine {
// The next argument that was given; it has to be of the parameter's kind.
void *buffer(const char *kind, bool written);
long long whole();
float number();
// Runs every thread of every block.
void run(void (*body)(const void *), const void *context, std::size_t bytes);
// Reads what to run, runs it and writes what it gave.
int start(const char *const *names, void (*const *launches)());

template <class Parameter> Parameter argument();
template <> inline float *argument<float *>() { return static_cast<float *>(buffer("output", true)); }
template <> inline unsigned short *argument<unsigned short *>() { return static_cast<unsigned short *>(buffer("output", true)); }
template <> inline const float *argument<const float *>() { return static_cast<const float *>(buffer("f32", false)); }
template <> inline const unsigned short *argument<const unsigned short *>() { return static_cast<const unsigned short *>(buffer("bf16", false)); }
template <> inline TensorMap argument<TensorMap>() {
    TensorMap map{static_cast<const unsigned short *>(buffer("bf16", false))};
    for (long long &size : map.dims) size = whole();
    for (long long &size : map.box) size = whole();
    return map;
}
template <> inline long long argument<long long>() { return whole(); }
template <> inline float argument<float>() { return number(); }

template <auto KERNEL> struct Launch;
template <class... Parameters, void (*KERNEL)(Parameters...)> struct Launch<KERNEL> {
    static void run() {
        const std::tuple<Parameters...> arguments{argument<Parameters>()...}; // in their order
        const auto body = [](const void *given) { std::apply(KERNEL, *static_cast<const std::tuple<Parameters...> *>(given)); };
        machine::run(body, &arguments, sizeof arguments);
    }
};
} // namespace machine
