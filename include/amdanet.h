/* amdanet: fuses a registered pair of pictures, visible and infrared, into one, and labels every pixel.
 *
 *     amdanet_model *model = NULL;
 *     amdanet_session *session = NULL;
 *     amdanet_frame frame;
 *     if (amdanet_model_load("network.safetensors", NULL, &model) != AMDANET_STATUS_OK ||
 *         amdanet_session_create(model, NULL, &session) != AMDANET_STATUS_OK ||
 *         amdanet_frame_init(&frame, sizeof frame) != AMDANET_STATUS_OK) {
 *         ... amdanet_last_error ...
 *     }
 *     frame.width = 640;
 *     frame.height = 480;
 *     frame.visible.data = rgb;
 *     frame.visible.length = 640 * 480 * 3;
 *     frame.infrared.data = gray;
 *     frame.infrared.length = 640 * 480;
 *     frame.infrared.channels = AMDANET_CHANNELS_GRAY;
 *     frame.fused.data = fused;
 *     frame.fused.length = 640 * 480 * 3;
 *     if (amdanet_session_run(session, &frame) != AMDANET_STATUS_OK) { ... amdanet_last_error ... }
 *     amdanet_session_free(session);
 *     amdanet_model_free(model);
 *
 * What holds for all functions:
 *
 * - Every call that can fail returns an amdanet_status; compilers warn when it is not looked at. After any other than
 *   AMDANET_STATUS_OK amdanet_last_error says what was wrong, with the argument and its value, and nothing was changed but
 *   what the function says.
 * - Besides the errors that a function names, any may return AMDANET_STATUS_INTERNAL: a defect of the library, which
 *   then is still usable.
 * - The library never ends the program, and writes nothing to standard output or standard error: see amdanet_set_log.
 * - Pointers to a model or a session that was freed, or that never was one, are errors as long as no new object has
 *   that address. The library cannot see whether other pointers are valid.
 * - Structures that begin with struct_size may grow at their end in later versions. A program that was compiled with an
 *   older header goes on working with a newer library. Fields called reserved must be 0.
 * - Enumerations are passed as uint32_t, and any other number is an error.
 * - Strings are UTF-8 and end with a 0. Paths are bytes as the system takes them.
 * - A process that has called the library and forks must not use it in the child before exec.
 */

#ifndef AMDANET_H
#define AMDANET_H

#include <stddef.h>
#include <stdint.h>

/* Compilers warn when a call with this attribute has a result that is not looked at. */
#ifndef AMDANET_MUST_USE
#if defined(__GNUC__) || defined(__clang__)
#define AMDANET_MUST_USE __attribute__((warn_unused_result))
#else
#define AMDANET_MUST_USE
#endif
#endif

/**
 * The major version of this header. A library of the same major version runs every program that was compiled with an
 * older header.
 */
#define AMDANET_VERSION_MAJOR 0

/**
 * The minor version of this header.
 */
#define AMDANET_VERSION_MINOR 1

/**
 * The patch version of this header.
 */
#define AMDANET_VERSION_PATCH 0

/**
 * The version of this header as one number: 10000 major + 100 minor + patch.
 */
#define AMDANET_VERSION 100

/**
 * For amdanet_session_wait: as long as it takes.
 */
#define AMDANET_WAIT_FOREVER UINT32_MAX

/**
 * How a call ended. The numbers never change; later versions may add some.
 */
enum amdanet_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * It did what it says.
     */
    AMDANET_STATUS_OK = 0,
    /**
     * An argument cannot be used: a pointer is NULL or no longer valid, a number is outside of its range or names no
     * constant, a stride or length is too small, a size overflows. amdanet_last_error names the argument and its value.
     */
    AMDANET_STATUS_INVALID_ARGUMENT = 1,
    /**
     * A file cannot be opened or read.
     */
    AMDANET_STATUS_IO = 2,
    /**
     * A file, or the memory that is said to hold one, is no checkpoint of a network, or is damaged.
     */
    AMDANET_STATUS_BAD_FILE = 3,
    /**
     * This library, or this machine, cannot do what was asked for.
     */
    AMDANET_STATUS_UNSUPPORTED = 4,
    /**
     * There is not enough memory, or more would be needed than amdanet_session_params.memory_limit.
     */
    AMDANET_STATUS_OUT_OF_MEMORY = 5,
    /**
     * The session is at work for another call, or has as many frames in its queue as it takes. Nothing was changed.
     */
    AMDANET_STATUS_BUSY = 6,
    /**
     * The frame was not finished in time. It is still being computed.
     */
    AMDANET_STATUS_TIMEOUT = 7,
    /**
     * A progress callback asked to stop, or the session was freed.
     */
    AMDANET_STATUS_CANCELLED = 8,
    /**
     * The library has a defect. Please report it with amdanet_last_error.
     */
    AMDANET_STATUS_INTERNAL = 9,
    /**
     * A CUDA device reported an error, such as too little memory. amdanet_last_error has its words.
     */
    AMDANET_STATUS_DEVICE = 10,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum amdanet_status amdanet_status;
#else
typedef int32_t amdanet_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * The order of the numbers of a pixel.
 */
enum amdanet_channels
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Red, green, blue.
     */
    AMDANET_CHANNELS_RGB = 0,
    /**
     * Blue, green, red.
     */
    AMDANET_CHANNELS_BGR = 1,
    /**
     * Red, green, blue, alpha: ignored in pictures, and full in results.
     */
    AMDANET_CHANNELS_RGBA = 2,
    /**
     * Blue, green, red, alpha.
     */
    AMDANET_CHANNELS_BGRA = 3,
    /**
     * One number, which stands for all three. For pictures only.
     */
    AMDANET_CHANNELS_GRAY = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum amdanet_channels amdanet_channels;
#else
typedef uint32_t amdanet_channels;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A kind of device.
 */
enum amdanet_device_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * CUDA device 0 if it is usable, else the CPU.
     */
    AMDANET_DEVICE_KIND_AUTO = 0,
    /**
     * The processor.
     */
    AMDANET_DEVICE_KIND_CPU = 1,
    /**
     * An NVIDIA GPU.
     */
    AMDANET_DEVICE_KIND_CUDA = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum amdanet_device_kind amdanet_device_kind;
#else
typedef uint32_t amdanet_device_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How much a message matters.
 */
enum amdanet_log_level
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * A defect of the library.
     */
    AMDANET_LOG_LEVEL_ERROR = 0,
    /**
     * Something is not as good as it could be.
     */
    AMDANET_LOG_LEVEL_WARNING = 1,
    /**
     * What was loaded, and what computes.
     */
    AMDANET_LOG_LEVEL_INFO = 2,
    /**
     * What was planned for a size of pictures.
     */
    AMDANET_LOG_LEVEL_DEBUG = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum amdanet_log_level amdanet_log_level;
#else
typedef uint32_t amdanet_log_level;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Where memory is.
 */
enum amdanet_memory
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The program's own.
     */
    AMDANET_MEMORY_HOST = 0,
    /**
     * That of the session's CUDA device, in its primary context, which is that of the CUDA runtime. There, addresses and
     * strides must be multiples of the size of a number, and floats of a picture that are not from 0 to 1 are limited.
     */
    AMDANET_MEMORY_CUDA = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum amdanet_memory amdanet_memory;
#else
typedef uint32_t amdanet_memory;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * The type of the arithmetic, whose sums are 32-bit floats in any case.
 */
enum amdanet_precision
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * 32-bit float.
     */
    AMDANET_PRECISION_F32 = 0,
    /**
     * 32-bit float whose products round their factors to 10 bits of mantissa. CUDA only.
     */
    AMDANET_PRECISION_TF32 = 1,
    /**
     * 16-bit float. CUDA only.
     */
    AMDANET_PRECISION_F16 = 2,
    /**
     * bfloat16. CUDA only.
     */
    AMDANET_PRECISION_BF16 = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum amdanet_precision amdanet_precision;
#else
typedef uint32_t amdanet_precision;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * The type of numbers, in the byte order of the machine.
 */
enum amdanet_type
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * uint8_t, 0 to 255.
     */
    AMDANET_TYPE_U8 = 0,
    /**
     * uint16_t, 0 to 65535. For pictures only.
     */
    AMDANET_TYPE_U16 = 1,
    /**
     * float, 0 to 1.
     */
    AMDANET_TYPE_F32 = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum amdanet_type amdanet_type;
#else
typedef uint32_t amdanet_type;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A network with its weights. It never changes once it is loaded, so that any number of threads may use it at once.
 */
typedef struct amdanet_model amdanet_model;

/**
 * Memory, plans and threads that compute with a network. A session computes one frame at a time; for several at once make
 * several sessions of one model.
 */
typedef struct amdanet_session amdanet_session;

/**
 * Takes a message: `user` as it was given, an amdanet_log_level, and one line of UTF-8 that is valid during the call. It may
 * be called on any thread, by several at once, and must not throw or jump out.
 */
typedef void (*amdanet_log_callback)(void *user, uint32_t level, const char *message);

/**
 * A device of this machine.
 */
typedef struct amdanet_device {
    /**
     * sizeof(amdanet_device), set before the call.
     */
    size_t struct_size;
    /**
     * An amdanet_device_kind, never AMDANET_DEVICE_KIND_AUTO.
     */
    uint32_t kind;
    /**
     * Its number among those of its kind, from 0.
     */
    uint32_t ordinal;
    /**
     * Its memory in bytes; 0 for the CPU.
     */
    uint64_t memory;
    /**
     * Whether sessions can be made there: 1 or 0.
     */
    uint32_t usable;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * What it is called, and why it is not usable if so. UTF-8, cut off where it does not fit, ends with a 0.
     */
    char name[256];
} amdanet_device;

/**
 * Is told how much is done: `done` of `total` steps. Returns 0 to go on, anything else to stop the call with
 * AMDANET_STATUS_CANCELLED. It may be called on a thread of the library, never by two at once for one call, and must not
 * throw or jump out. Calls that it makes for the same session return AMDANET_STATUS_BUSY, but
 * for amdanet_session_submit, and amdanet_session_free, which returns before the frame is done. It must not wait for a thread
 * that is in a call of this library, unless the session has threads of its own.
 */
typedef int32_t (*amdanet_progress_callback)(void *user, uint64_t done, uint64_t total);

/**
 * How a network is loaded. All zeros but struct_size are the defaults.
 */
typedef struct amdanet_load_params {
    /**
     * sizeof(amdanet_load_params).
     */
    size_t struct_size;
    /**
     * Is told how much is done; NULL for none.
     */
    amdanet_progress_callback progress;
    /**
     * Handed to `progress`.
     */
    void *progress_user;
    /**
     * The epsilon of the batch norms, above 0 and finite. 0: what the file says, or 1e-5 where it says nothing.
     */
    float bn_eps;
    /**
     * 0.
     */
    uint32_t reserved;
} amdanet_load_params;

/**
 * What a network is.
 */
typedef struct amdanet_model_info {
    /**
     * sizeof(amdanet_model_info), set before the call.
     */
    size_t struct_size;
    /**
     * Number of parameters.
     */
    uint64_t parameters;
    /**
     * "release" or "paper". As `encoder` UTF-8 that ends with a 0 and lives as long as the model.
     */
    const char *arch;
    /**
     * "nano", "b0" to "b5", or "custom".
     */
    const char *encoder;
    /**
     * Number of classes, 1 to 255.
     */
    uint32_t classes;
    /**
     * The least width and height of a picture, in pixels.
     */
    uint32_t smallest_side;
    /**
     * The largest width and height of a picture, in pixels.
     */
    uint32_t largest_side;
    /**
     * 0.
     */
    uint32_t reserved;
} amdanet_model_info;

/**
 * A class.
 */
typedef struct amdanet_class {
    /**
     * sizeof(amdanet_class), set before the call.
     */
    size_t struct_size;
    /**
     * Its name, UTF-8 that ends with a 0 and lives as long as the model.
     */
    const char *name;
    /**
     * Its colour: red, green, blue, and 255.
     */
    uint8_t color[4];
    /**
     * 0.
     */
    uint32_t reserved;
} amdanet_class;

/**
 * A picture to read. Its layout never changes. No alignment is asked for in the program's own memory.
 */
typedef struct amdanet_picture {
    /**
     * The first pixel of the first row. Only read, and only until the frame is done.
     */
    const void *data;
    /**
     * Bytes that `data` points at: at least (height - 1) stride + the bytes of a row.
     */
    size_t length;
    /**
     * Bytes from one row to the next, at least those of a row; 0 when there is nothing between rows.
     */
    size_t stride;
    /**
     * An amdanet_channels.
     */
    uint32_t channels;
    /**
     * An amdanet_type.
     */
    uint32_t type;
    /**
     * An amdanet_memory.
     */
    uint32_t memory;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * The numbers that are black and white: a number v is taken as (v - black) / (white - black), limited to 0 and 1. With
     * both 0, the whole range of the type. For a thermal camera that counts from 7000 to 9000 in 16 bits: those.
     */
    float black;
    /**
     * See `black`; another number than it, both finite.
     */
    float white;
} amdanet_picture;

/**
 * Memory to write to. Its layout never changes. No alignment is asked for in the program's own memory.
 */
typedef struct amdanet_buffer {
    /**
     * The first pixel of the first row; NULL when the result is not wanted. It may be that of a picture of the same frame,
     * which is overwritten then.
     */
    void *data;
    /**
     * Bytes that `data` points at: at least (height - 1) stride + the bytes of a row. What is between rows is not written.
     */
    size_t length;
    /**
     * Bytes from one row to the next, at least those of a row; 0 when there is nothing between rows.
     */
    size_t stride;
    /**
     * An amdanet_memory.
     */
    uint32_t memory;
    /**
     * 0.
     */
    uint32_t reserved;
} amdanet_buffer;

/**
 * A pair of pictures, and where its results go. All zeros but struct_size are the defaults; sizes and data must be set.
 */
typedef struct amdanet_frame {
    /**
     * sizeof(amdanet_frame).
     */
    size_t struct_size;
    /**
     * Pixels in a row of both pictures and of all results: amdanet_model_info.smallest_side to largest_side.
     */
    uint32_t width;
    /**
     * Rows of both pictures and of all results; the same range.
     */
    uint32_t height;
    /**
     * The visible picture.
     */
    struct amdanet_picture visible;
    /**
     * The infrared picture, registered with the visible one; usually gray.
     */
    struct amdanet_picture infrared;
    /**
     * The fused picture, in `fused_channels` and `fused_type`.
     */
    struct amdanet_buffer fused;
    /**
     * The class of each pixel, one uint8_t each. 255 does not occur.
     */
    struct amdanet_buffer labels;
    /**
     * The probability of each class for each pixel: `classes` floats for a pixel, one pixel after the other in a row. Their
     * sum is 1. This takes time and memory; labels do not need it.
     */
    struct amdanet_buffer probabilities;
    /**
     * An amdanet_channels, not AMDANET_CHANNELS_GRAY.
     */
    uint32_t fused_channels;
    /**
     * An amdanet_type, not AMDANET_TYPE_U16. Bytes are 255 times the float, rounded.
     */
    uint32_t fused_type;
    /**
     * A CUstream or cudaStream_t of the session's CUDA device that takes part: the frame begins when the work that is on it
     * is done, and work that is put on it after the frame begins when the results are there. If all pictures and buffers are
     * in CUDA memory, the frame counts as done when it is queued: they must then stay until the stream has come past it, and
     * what goes wrong on the device later is returned by a later call. Not CU_STREAM_PER_THREAD, because the session has
     * threads of its own. NULL, always for the CPU: pictures are ready at the call, and results when the frame is done.
     */
    void *stream;
} amdanet_frame;

/**
 * How a session computes. All zeros but struct_size are the defaults.
 */
typedef struct amdanet_session_params {
    /**
     * sizeof(amdanet_session_params).
     */
    size_t struct_size;
    /**
     * Is told of each step of a frame; NULL for none. It costs a call for each of some hundred steps.
     */
    amdanet_progress_callback progress;
    /**
     * Handed to `progress`.
     */
    void *progress_user;
    /**
     * The most bytes that a frame may take besides weights and the caller's own, on the device that computes it; 0 for what
     * there is.
     */
    uint64_t memory_limit;
    /**
     * An amdanet_device_kind.
     */
    uint32_t device;
    /**
     * Which device of that kind; 0 for AMDANET_DEVICE_KIND_AUTO and AMDANET_DEVICE_KIND_CPU.
     */
    uint32_t ordinal;
    /**
     * An amdanet_precision; AMDANET_PRECISION_F32 on the CPU. AMDANET_PRECISION_F16 is the fastest on a GPU.
     */
    uint32_t precision;
    /**
     * Threads of its own, 1 to 1024. 0: one for each processor, which all such sessions share; sessions that compute at the
     * same time are better off with their own. A session's results do not depend on it.
     */
    uint32_t threads;
    /**
     * The width of all frames, if it is known, and `height`. The session is then made ready: memory is taken, and the first
     * frame is as quick as any. Both 0: any size; what a size needs is made when it is first met, and kept for the last few.
     */
    uint32_t width;
    /**
     * The height of all frames, or 0.
     */
    uint32_t height;
    /**
     * The most frames that are submitted and not waited for, 1 to 64; 0 for 2.
     */
    uint32_t queue;
    /**
     * 1: note the time of each step of each frame, for amdanet_session_get_step. 0: do not.
     */
    uint32_t timing;
} amdanet_session_params;

/**
 * What a session is.
 */
typedef struct amdanet_session_info {
    /**
     * sizeof(amdanet_session_info), set before the call.
     */
    size_t struct_size;
    /**
     * Bytes that it holds for computing, besides the weights, which all sessions of a model share.
     */
    uint64_t memory;
    /**
     * The amdanet_device_kind that it computes on.
     */
    uint32_t device;
    /**
     * Which device of that kind.
     */
    uint32_t ordinal;
    /**
     * Its amdanet_precision.
     */
    uint32_t precision;
    /**
     * Its threads.
     */
    uint32_t threads;
    /**
     * Steps whose times are known, for amdanet_session_get_step: those of the last frame if amdanet_session_params.timing is
     * 1, else 0.
     */
    uint32_t steps;
    /**
     * Frames that are submitted and not waited for.
     */
    uint32_t submitted;
} amdanet_session_info;

/**
 * A step of a frame.
 */
typedef struct amdanet_step {
    /**
     * sizeof(amdanet_step), set before the call.
     */
    size_t struct_size;
    /**
     * What it computed, such as "level 3 block attention". UTF-8 that ends with a 0 and lives until the session computes
     * another frame or is freed.
     */
    const char *name;
    /**
     * How long it took.
     */
    double milliseconds;
    /**
     * Bytes of what it read and wrote, each counted once.
     */
    uint64_t bytes;
    /**
     * Operations of its products, 2 for each multiply-add.
     */
    uint64_t operations;
} amdanet_step;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library that runs, as one number like AMDANET_VERSION. Any thread may call it.
 */
uint32_t amdanet_version(void);

/**
 * What the library was built with, in one line for logs and reports: its version, the vector instructions that it uses on
 * this processor, and its CUDA kernels. Never NULL; it lives as long as the program. Any thread may call it.
 */
const char *amdanet_build_info(void);

/**
 * The message of the last call in this thread that returned another status than AMDANET_STATUS_OK: one line of UTF-8 that
 * names the argument or file, its value, and where possible the remedy. Calls that succeed leave it as it is; it is empty
 * before the first failure. What failed on another thread, in amdanet_session_submit, is this thread's once
 * amdanet_session_wait has returned it.
 *
 * Writes at most `length` bytes to `buffer`, the last of them a 0; a longer message is cut off between characters.
 * `buffer` may be NULL, then nothing is written.
 *
 * Returns the bytes of the whole message, without the 0: allocate one more, and call again, if that is not below `length`.
 */
size_t amdanet_last_error(char *buffer,
                          size_t length);

/**
 * The name of a status, such as "invalid argument"; "unknown status" for any other number. Never NULL; it lives as long as
 * the program. Any thread may call it.
 */
const char *amdanet_status_name(int32_t status);

/**
 * Sends the library's messages to `callback`, for the whole process. Without one, which is how it begins, they are dropped:
 * the library writes nothing to standard output or standard error.
 *
 * `callback`: NULL for none. `user`: handed to it, never used otherwise; must stay valid until the callback is replaced and
 * the calls that had begun by then are over. `most`: an amdanet_log_level; messages that matter less are dropped.
 *
 * Any thread may call it. Errors: AMDANET_STATUS_INVALID_ARGUMENT when `most` is no level.
 */
AMDANET_MUST_USE
amdanet_status amdanet_set_log(amdanet_log_callback callback,
                               void *user,
                               uint32_t most);

/**
 * The number of devices, at least 1: device 0 is the CPU. They are looked for once in a process. Any thread may call it.
 */
uint32_t amdanet_device_count(void);

/**
 * Describes device `index`, below amdanet_device_count, in `*device`, whose struct_size is set. Any thread may call it.
 *
 * Errors: AMDANET_STATUS_INVALID_ARGUMENT when there is no such device, or `device` is NULL or has no valid size.
 */
AMDANET_MUST_USE
amdanet_status amdanet_get_device(uint32_t index,
                                  struct amdanet_device *device);

/**
 * Fills `*params` with the defaults: `amdanet_load_params_init(&params, sizeof params)`. `struct_size` is that size, so that
 * no more than the caller's structure is written. Any thread may call it.
 *
 * Errors: AMDANET_STATUS_INVALID_ARGUMENT when `params` is NULL or `struct_size` is no size of it.
 */
AMDANET_MUST_USE
amdanet_status amdanet_load_params_init(struct amdanet_load_params *params,
                                        size_t struct_size);

/**
 * Loads a network from a file: safetensors of `amdanet train` or `amdanet convert`, or a published .pth as it is.
 *
 * `path`: ends with a 0; bytes as the system takes them, UTF-8 on Windows. `params`: NULL for the defaults. `*model`: the
 * network, which the caller owns and frees with amdanet_model_free; NULL after an error.
 *
 * Any thread may call it; nothing is shared between calls. The progress callback counts 2 steps: reading and packing.
 *
 * Errors: AMDANET_STATUS_INVALID_ARGUMENT; AMDANET_STATUS_IO when the file cannot be read; AMDANET_STATUS_BAD_FILE when it is
 * no complete network, or damaged; AMDANET_STATUS_OUT_OF_MEMORY; AMDANET_STATUS_CANCELLED; AMDANET_STATUS_UNSUPPORTED when
 * `params` has fields of a newer version that are not 0.
 */
AMDANET_MUST_USE
amdanet_status amdanet_model_load(const char *path,
                                  const struct amdanet_load_params *params,
                                  struct amdanet_model **model);

/**
 * Loads a network from memory that holds such a file.
 *
 * `data`, `length`: the bytes; they are not needed any more when the call returns. Everything else is as in
 * amdanet_model_load. Errors: as there, but for AMDANET_STATUS_IO.
 */
AMDANET_MUST_USE
amdanet_status amdanet_model_load_memory(const void *data,
                                         size_t length,
                                         const struct amdanet_load_params *params,
                                         struct amdanet_model **model);

/**
 * Frees a network; sessions that were made of it go on. NULL, and what was freed before, are nothing. Any thread may call
 * it, also while another uses the network.
 */
void amdanet_model_free(struct amdanet_model *model);

/**
 * Describes a network in `*info`, whose struct_size is set. Any thread may call it.
 *
 * Errors: AMDANET_STATUS_INVALID_ARGUMENT when `model` is none, or `info` is NULL or has no valid size.
 */
AMDANET_MUST_USE
amdanet_status amdanet_model_get_info(const struct amdanet_model *model,
                                      struct amdanet_model_info *info);

/**
 * Describes class `index`, which is its label too, in `*info`, whose struct_size is set. Names come from the checkpoint, or
 * from the published data set with as many classes. Any thread may call it.
 *
 * Errors: AMDANET_STATUS_INVALID_ARGUMENT when `model` is none, there is no such class, or `info` is NULL or has no valid
 * size.
 */
AMDANET_MUST_USE
amdanet_status amdanet_model_get_class(const struct amdanet_model *model,
                                       uint32_t index,
                                       struct amdanet_class *info);

/**
 * Fills `*frame` with the defaults: `amdanet_frame_init(&frame, sizeof frame)`. `struct_size` is that size, so that no more
 * than the caller's structure is written. Any thread may call it.
 *
 * Errors: AMDANET_STATUS_INVALID_ARGUMENT when `frame` is NULL or `struct_size` is no size of it.
 */
AMDANET_MUST_USE
amdanet_status amdanet_frame_init(struct amdanet_frame *frame,
                                  size_t struct_size);

/**
 * Fills `*params` with the defaults: `amdanet_session_params_init(&params, sizeof params)`. `struct_size` is that size, so
 * that no more than the caller's structure is written. Any thread may call it.
 *
 * Errors: AMDANET_STATUS_INVALID_ARGUMENT when `params` is NULL or `struct_size` is no size of it.
 */
AMDANET_MUST_USE
amdanet_status amdanet_session_params_init(struct amdanet_session_params *params,
                                           size_t struct_size);

/**
 * Makes a session of a network.
 *
 * `params`: NULL for the defaults. `*session`: the session, which the caller owns and frees with amdanet_session_free; NULL
 * after an error. It needs `model` no longer than the call. Any thread may call it, several at once for one model.
 *
 * Errors: AMDANET_STATUS_INVALID_ARGUMENT; AMDANET_STATUS_UNSUPPORTED for a device or precision that there is not, and when
 * `params` has fields of a newer version that are not 0; AMDANET_STATUS_OUT_OF_MEMORY when memory or threads for the size
 * given cannot be had; AMDANET_STATUS_DEVICE.
 */
AMDANET_MUST_USE
amdanet_status amdanet_session_create(const struct amdanet_model *model,
                                      const struct amdanet_session_params *params,
                                      struct amdanet_session **session);

/**
 * Frees a session, after the frame that it computes; frames in its queue are not begun any more, and whoever waits for them
 * gets AMDANET_STATUS_CANCELLED. When it returns, the caller's memory is not used any more; only if a callback of the library
 * calls it, it returns before that. NULL, and what was freed before, are nothing. Any thread may call it.
 */
void amdanet_session_free(struct amdanet_session *session);

/**
 * Fuses and labels a pair, and returns when the results are written. The pictures and buffers of `frame` are used only during
 * the call.
 *
 * Threads: any, one at a time; see AMDANET_STATUS_BUSY.
 *
 * Errors: AMDANET_STATUS_INVALID_ARGUMENT, which also is a picture of floats that are not from 0 to 1, and another size than
 * that of the session; AMDANET_STATUS_UNSUPPORTED for CUDA memory and streams where the session is on the CPU, and for fields
 * of a newer version that are not 0; AMDANET_STATUS_DEVICE; AMDANET_STATUS_BUSY while the session computes another frame, has frames in its queue, or when it is called from a
 * callback of the session; AMDANET_STATUS_OUT_OF_MEMORY; AMDANET_STATUS_CANCELLED by the progress callback. After an error the
 * buffers hold what they held, and the session can go on.
 */
AMDANET_MUST_USE
amdanet_status amdanet_session_run(struct amdanet_session *session,
                                   const struct amdanet_frame *frame);

/**
 * Puts a pair into the session's queue, and returns at once. A thread of the session computes the frames of the queue one
 * after the other, so that the caller can prepare the next one meanwhile.
 *
 * `*frame` is copied; its pictures and buffers must stay, the pictures unchanged, until amdanet_session_wait has returned the
 * frame's end or the session is freed. `*ticket`: the number to wait for, which is never 0.
 *
 * Threads: any, at any time, also while others wait. Errors: as those of amdanet_session_run that come before computing;
 * AMDANET_STATUS_BUSY also when amdanet_session_params.queue frames are submitted and not waited for. What goes wrong later is
 * returned by amdanet_session_wait.
 */
AMDANET_MUST_USE
amdanet_status amdanet_session_submit(struct amdanet_session *session,
                                      const struct amdanet_frame *frame,
                                      uint64_t *ticket);

/**
 * Waits until a frame that was submitted is done, and returns how it ended, as amdanet_session_run would have. Its number is
 * used up then.
 *
 * `milliseconds`: the longest time to wait; 0 only asks. Threads: any, several at once; each number is returned to one.
 *
 * Errors: those of computing; AMDANET_STATUS_TIMEOUT when it is not done in time: wait again later;
 * AMDANET_STATUS_INVALID_ARGUMENT when there is no such number, or it was returned already; AMDANET_STATUS_BUSY from a
 * callback, where waiting would never end; AMDANET_STATUS_CANCELLED when the session was freed meanwhile.
 */
AMDANET_MUST_USE
amdanet_status amdanet_session_wait(struct amdanet_session *session,
                                    uint64_t ticket,
                                    uint32_t milliseconds);

/**
 * Describes a session in `*info`, whose struct_size is set. Any thread may call it.
 *
 * Errors: AMDANET_STATUS_INVALID_ARGUMENT when `session` is none, or `info` is NULL or has no valid size;
 * AMDANET_STATUS_BUSY while it computes.
 */
AMDANET_MUST_USE
amdanet_status amdanet_session_get_info(struct amdanet_session *session,
                                        struct amdanet_session_info *info);

/**
 * Describes step `index`, below amdanet_session_info.steps, of the last frame that was finished in `*step`, whose struct_size
 * is set. Any thread may call it.
 *
 * Errors: AMDANET_STATUS_INVALID_ARGUMENT when `session` is none, there is no such step, or `step` is NULL or has no valid
 * size; AMDANET_STATUS_BUSY while it computes.
 */
AMDANET_MUST_USE
amdanet_status amdanet_session_get_step(struct amdanet_session *session,
                                        uint32_t index,
                                        struct amdanet_step *step);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* AMDANET_H */
