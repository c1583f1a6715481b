// Which thread is running, as kernels see it.
#include "../include/emulated.h"

extern "C" {
__thread EmulatedThread emulated_thread;

EmulatedThread* emulated_thread_address() { return &emulated_thread; }
}
