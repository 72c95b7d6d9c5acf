// Runs a bundle of the target `cuda` from C++: the CUDA driver's interface alone, no toolkit, no library.
//
//   g++ -std=c++17 -O2 host.cpp -lcuda -o host
//   ./host BUNDLE x.bin ... -- y.bin ...
//
// Inputs are files of raw little-endian values as manifest.json declares them, outputs are written likewise. The whole
// network is one CUDA graph. Bundles need a cubin for the card (--arch), and no state.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

// What <cuda.h> declares, as far as it is needed here.
extern "C" {
int cuInit(unsigned);
int cuDeviceGet(int *, int);
int cuDeviceGetAttribute(int *, int, int);
int cuDevicePrimaryCtxRetain(void **, int);
int cuCtxSetCurrent(void *);
int cuModuleLoadData(void **, const void *);
int cuModuleGetFunction(void **, void *, const char *);
int cuFuncSetAttribute(void *, int, int);
int cuMemAlloc_v2(uint64_t *, size_t);
int cuMemsetD8Async(uint64_t, unsigned char, size_t, void *);
int cuMemcpyHtoDAsync_v2(uint64_t, const void *, size_t, void *);
int cuMemcpyDtoHAsync_v2(void *, uint64_t, size_t, void *);
int cuStreamCreate(void **, unsigned);
int cuStreamSynchronize(void *);
int cuStreamBeginCapture_v2(void *, int);
int cuStreamEndCapture(void *, void **);
int cuGraphInstantiateWithFlags(void **, void *, unsigned long long);
int cuGraphLaunch(void *, void *);
int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
}

namespace {

[[noreturn]] void fail(const std::string &why) {
  std::fprintf(stderr, "host: %s\n", why.c_str());
  std::exit(1);
}
void check(int code, const char *what) {
  if (code) fail(std::string(what) + " failed with error " + std::to_string(code) + " of the CUDA driver");
}
#define CALL(function, ...) check(function(__VA_ARGS__), #function)

std::string contents(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path + " cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

// -- as much JSON as the files have -----------------------------------------------------------------------------------

struct Json {
  char kind = 'n';  // n(ull), b(oolean), d (number), s(tring), a(rray), o(bject)
  double number = 0;
  std::string text;
  std::vector<Json> items;
  std::map<std::string, Json> fields;
  const Json &operator[](const std::string &name) const {
    auto found = fields.find(name);
    if (found == fields.end()) fail("a field `" + name + "` is missing");
    return found->second;
  }
  bool has(const std::string &name) const { return fields.count(name) > 0; }
  size_t whole() const { return (size_t)number; }
};

struct Parser {
  const std::string &s;
  size_t at = 0;
  char next() {
    while (at < s.size() && std::string(" \t\r\n,:").find(s[at]) != std::string::npos) ++at;
    if (at >= s.size()) fail("JSON ends too early");
    return s[at];
  }
  Json value() {
    Json found;
    switch (next()) {
      case '{':
        for (found.kind = 'o', ++at; next() != '}';) {
          std::string name = string();
          found.fields[name] = value();
        }
        ++at;
        return found;
      case '[':
        for (found.kind = 'a', ++at; next() != ']';) found.items.push_back(value());
        ++at;
        return found;
      case '"': found.kind = 's'; found.text = string(); return found;
      case 't': found.kind = 'b'; found.number = 1; at += 4; return found;
      case 'f': found.kind = 'b'; at += 5; return found;
      case 'n': at += 4; return found;
      default: {
        char *end = nullptr;
        found.kind = 'd';
        found.number = std::strtod(s.c_str() + at, &end);
        if (end == s.c_str() + at) fail("JSON has something unexpected");
        at = (size_t)(end - s.c_str());
        return found;
      }
    }
  }
  std::string string() {
    std::string found;
    for (next(), ++at; at < s.size() && s[at] != '"'; ++at)
      if (s[at] == '\\') {  // names of kernels and files have no escapes; others are not looked at
        ++at;
        found += '?';
      } else {
        found += s[at];
      }
    ++at;
    return found;
  }
};

Json parsed(const std::string &path) {
  std::string text = contents(path);
  Parser parser{text};
  return parser.value();
}

size_t item_size(const std::string &dtype) {
  static const std::map<std::string, size_t> sizes = {{"float32", 4}, {"int32", 4}, {"int64", 8}, {"uint8", 1},
                                                      {"int8", 1},    {"bool", 1},  {"int16", 2}, {"uint16", 2}};
  auto found = sizes.find(dtype);
  if (found == sizes.end()) fail("values of type " + dtype + " are not known here");
  return found->second;
}

size_t bytes_of(const Json &tensor) {
  size_t count = item_size(tensor["dtype"].text);
  for (const Json &extent : tensor["shape"].items) count *= extent.whole();
  return count;
}

uint64_t allocate(size_t bytes) {
  uint64_t pointer = 0;
  CALL(cuMemAlloc_v2, &pointer, bytes ? bytes : 1);
  return pointer;
}

}  // namespace

int main(int count, char **arguments) {
  std::vector<std::string> given, wanted;
  bool behind = false;
  for (int i = 2; i < count; ++i)
    if (std::string(arguments[i]) == "--") behind = true;
    else (behind ? wanted : given).push_back(arguments[i]);
  if (count < 3) fail("usage: host BUNDLE x.bin ... -- y.bin ...");
  std::string bundle = arguments[1];
  Json manifest = parsed(bundle + "/manifest.json");
  const std::vector<Json> &inputs = manifest["inputs"].items, &outputs = manifest["outputs"].items;
  if (given.size() != inputs.size() || wanted.size() != outputs.size())
    fail("the bundle has " + std::to_string(inputs.size()) + " inputs and " + std::to_string(outputs.size()) + " outputs");
  for (const Json &input : inputs)
    if (input.has("state")) fail("the bundle keeps states; open it from Python");

  int device = 0, major = 0, minor = 0;
  void *context = nullptr, *stream = nullptr, *module = nullptr;
  CALL(cuInit, 0);
  CALL(cuDeviceGet, &device, 0);
  CALL(cuDeviceGetAttribute, &major, 75, device);
  CALL(cuDeviceGetAttribute, &minor, 76, device);
  CALL(cuDevicePrimaryCtxRetain, &context, device);
  CALL(cuCtxSetCurrent, context);
  CALL(cuStreamCreate, &stream, 1);

  // The newest variant that this card runs, and its newest cubin.
  int card = 10 * major + minor, best = -1;
  const Json *variant = nullptr;
  for (const Json &one : manifest["cuda"]["variants"].items) {
    int arch = (int)one["arch"].number;
    if (one["only"].number != 0 ? card == arch : card >= arch) variant = &one;
  }
  if (!variant) fail("the bundle has no kernels for sm_" + std::to_string(card));
  std::string cubin;
  for (const auto &[name, path] : (*variant)["cubins"].fields) {
    int arch = std::atoi(name.c_str() + 3);
    if (arch / 10 == card / 10 && arch <= card && arch > best) best = arch, cubin = path.text;
  }
  if (cubin.empty()) fail("the bundle has no cubin for sm_" + std::to_string(card) + "; compile it with --arch");
  std::string code = contents(bundle + "/" + cubin);
  CALL(cuModuleLoadData, &module, code.data());

  std::string weights = contents(bundle + "/" + (*variant)["weights"].text);
  std::map<std::string, uint64_t> places = {{"weights", allocate(weights.size())},
                                            {"arena", allocate((*variant)["arena_bytes"].whole())}};
  // Counters of kernels that several blocks of one sum meet in: 0 now, and again after every kernel.
  if (size_t counters = (*variant)["counter_bytes"].whole()) {
    places["counters"] = allocate(counters);
    CALL(cuMemsetD8Async, places["counters"], (unsigned char)0, counters, stream);
  }
  CALL(cuMemcpyHtoDAsync_v2, places["weights"], weights.data(), weights.size(), stream);
  std::map<std::string, std::vector<uint64_t>> tensors;
  for (size_t i = 0; i < inputs.size(); ++i) {
    std::string data = contents(given[i]);
    if (data.size() != bytes_of(inputs[i]))
      fail(given[i] + " has " + std::to_string(data.size()) + " bytes, not " + std::to_string(bytes_of(inputs[i])));
    tensors["input"].push_back(allocate(data.size() + 256));
    CALL(cuMemcpyHtoDAsync_v2, tensors["input"][i], data.data(), data.size(), stream);
    CALL(cuStreamSynchronize, stream);
  }
  for (const Json &output : outputs) tensors["output"].push_back(allocate(bytes_of(output) + 256));

  Json launches = parsed(bundle + "/" + (*variant)["launches"].text);
  CALL(cuStreamBeginCapture_v2, stream, 2);
  for (const Json &launch : launches.items) {
    void *function = nullptr;
    CALL(cuModuleGetFunction, &function, module, launch["kernel"].text.c_str());
    unsigned shared = (unsigned)launch["shared"].whole();
    if (shared > 48 * 1024) CALL(cuFuncSetAttribute, function, 8, (int)shared);
    const std::vector<Json> &values = launch["arguments"].items;
    std::vector<uint64_t> held(values.size());
    std::vector<void *> pointers;
    for (size_t i = 0; i < values.size(); ++i) {
      const Json &value = values[i];
      if (value.kind == 'd') {
        int32_t number = (int32_t)value.number;
        std::memcpy(&held[i], &number, sizeof number);
      } else if (value.items.size() == 2) {
        held[i] = places.at(value.items[0].text) + value.items[1].whole();
      } else {
        held[i] = tensors.at(value.items[0].text).at(value.items[1].whole()) + value.items[2].whole();
      }
      pointers.push_back(&held[i]);
    }
    const std::vector<Json> &grid = launch["grid"].items;
    CALL(cuLaunchKernel, function, (unsigned)grid[0].whole(), (unsigned)grid[1].whole(), (unsigned)grid[2].whole(),
         (unsigned)launch["threads"].whole(), 1, 1, shared, stream, pointers.data(), nullptr);
  }
  void *captured = nullptr, *network = nullptr;
  CALL(cuStreamEndCapture, stream, &captured);
  CALL(cuGraphInstantiateWithFlags, &network, captured, 0);
  CALL(cuGraphLaunch, network, stream);
  for (size_t i = 0; i < outputs.size(); ++i) {
    std::string data(bytes_of(outputs[i]), '\0');
    CALL(cuMemcpyDtoHAsync_v2, data.data(), tensors["output"][i], data.size(), stream);
    CALL(cuStreamSynchronize, stream);
    std::ofstream file(wanted[i], std::ios::binary);
    if (!file.write(data.data(), (std::streamsize)data.size())) fail(wanted[i] + " cannot be written");
  }
  return 0;
}
