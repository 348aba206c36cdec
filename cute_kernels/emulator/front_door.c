/* Stands where the CUDA runtime's entry points would stand for host code that the CuTe DSL compiled: kernels are handed
   to Python, tensor maps too, and questions about the device are answered by Python. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int (*launch_t)(const void *config, const char *kernel, const void *code, void **arguments);
typedef int (*encode_t)(void *map, int type, uint32_t rank, uint64_t address, const uint64_t *dims,
                        const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave,
                        int swizzle, int promotion, int fill);
typedef int (*attribute_t)(int attribute);

static launch_t on_launch;
static encode_t on_encode;
static attribute_t on_attribute;

void front_door_connect(launch_t launch, encode_t encode, attribute_t attribute) {
  on_launch = launch;
  on_encode = encode;
  on_attribute = attribute;
}

/* A kernel's handle says what a launch launches. */
struct kernel {
  char *name;
  const void *code;
};

int _cudaLaunchKernelEx(const void *config, const void *handle, void **arguments) {
  const struct kernel *kernel = handle;
  return on_launch(config, kernel->name, kernel->code, arguments);
}

int _cudaLibraryLoadData(void **library, const void *code, void *jit_options, void *jit_values, unsigned jit_count,
                         void *options, void *values, unsigned count) {
  *library = (void *)code;
  return 0;
}

int _cudaLibraryGetKernel(void **handle, void *library, const char *name) {
  struct kernel *kernel = malloc(sizeof *kernel);
  kernel->name = strdup(name);
  kernel->code = library;
  *handle = kernel;
  return 0;
}

int _cudaFuncSetAttribute(const void *function, int attribute, int value) { return 0; }
int _cudaKernelSetAttributeForDevice(void *kernel, int attribute, int value, int device) { return 0; }
int _cuKernelGetAttribute(int *value, int attribute, void *kernel, int device) { *value = 0; return 0; }
int _cudaGetDevice(int *device) { *device = 0; return 0; }

int _cudaDeviceGetAttribute(int *value, int attribute, int device) {
  *value = on_attribute(attribute);
  return 0;
}

int _cuTensorMapEncodeTiled(void *map, int type, uint32_t rank, void *address, const uint64_t *dims,
                            const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave,
                            int swizzle, int promotion, int fill) {
  return on_encode(map, type, rank, (uint64_t)address, dims, strides, box, steps, interleave, swizzle, promotion, fill);
}

void cuda_dialect_assert_success(int result) {}
