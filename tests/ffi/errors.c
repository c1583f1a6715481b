/* Every error that the header names, with the argument's name in the message. */
#include "check.h"
#include <sys/resource.h>

static void messages(void)
{
    char message[16];
    CHECK(amdanet_last_error(NULL, 0) == 0);
    CHECK(amdanet_last_error(message, sizeof message) == 0 && message[0] == 0);
    FAILS(amdanet_get_device(1000, NULL), INVALID_ARGUMENT, "index: 1000");
    size_t length = amdanet_last_error(NULL, 100);
    CHECK(length > sizeof message && amdanet_last_error(message, sizeof message) == length);
    CHECK(strlen(message) == sizeof message - 1 && strncmp(message, "index: 1000: th", 15) == 0);
    CHECK(strcmp(amdanet_status_name(AMDANET_STATUS_BUSY), "busy") == 0);
    CHECK(strcmp(amdanet_status_name(AMDANET_STATUS_INTERNAL), "internal error") == 0);
    CHECK(strcmp(amdanet_status_name(11), "unknown status") == 0 && strcmp(amdanet_status_name(-1), "unknown status") == 0);
}

static void structures(const amdanet_model *model)
{
    amdanet_frame frame;
    amdanet_load_params load;
    amdanet_session_params session;
    amdanet_device device;
    amdanet_class class_of;
    amdanet_model_info info;
    FAILS(amdanet_frame_init(NULL, sizeof frame), INVALID_ARGUMENT, "amdanet_frame: is NULL");
    FAILS(amdanet_load_params_init(NULL, sizeof load), INVALID_ARGUMENT, "amdanet_load_params: is NULL");
    FAILS(amdanet_session_params_init(NULL, sizeof session), INVALID_ARGUMENT, "amdanet_session_params: is NULL");
    FAILS(amdanet_frame_init(&frame, 4), INVALID_ARGUMENT, "amdanet_frame.struct_size: 4 bytes");
    FAILS(amdanet_frame_init(&frame, 1 << 20), INVALID_ARGUMENT, "amdanet_frame.struct_size");
    FAILS(amdanet_load_params_init(&load, sizeof load - 1), INVALID_ARGUMENT, "amdanet_load_params.struct_size");
    FAILS(amdanet_get_device(0, NULL), INVALID_ARGUMENT, "device: is NULL");
    device.struct_size = 0;
    FAILS(amdanet_get_device(0, &device), INVALID_ARGUMENT, "amdanet_device.struct_size: 0 bytes");
    class_of.struct_size = sizeof class_of;
    FAILS(amdanet_model_get_class(model, CLASSES, &class_of), INVALID_ARGUMENT, "index: 5");
    FAILS(amdanet_model_get_class(model, 0, NULL), INVALID_ARGUMENT, "info: is NULL");
    FAILS(amdanet_model_get_class(NULL, 0, &class_of), INVALID_ARGUMENT, "model: is NULL");
    class_of.struct_size = 7;
    FAILS(amdanet_model_get_class(model, 0, &class_of), INVALID_ARGUMENT, "struct_size");
    info.struct_size = 1;
    FAILS(amdanet_model_get_info(model, &info), INVALID_ARGUMENT, "struct_size");
    FAILS(amdanet_model_get_info(model, NULL), INVALID_ARGUMENT, "info: is NULL");
    FAILS(amdanet_model_get_info((const amdanet_model *)(const void *)&info, &info), INVALID_ARGUMENT, "is no model");
}

static int32_t stop(void *user, uint64_t done, uint64_t total)
{
    (void)total;
    return done == *(uint64_t *)user;
}

static void loading(const char *folder, const amdanet_model *alive)
{
    amdanet_model *model = (amdanet_model *)1;
    amdanet_load_params params;
    char *missing = path_in(folder, "missing"), *damaged = path_in(folder, "damaged"), *good = path_in(folder, "network.safetensors");
    FAILS(amdanet_model_load(NULL, NULL, &model), INVALID_ARGUMENT, "path: is NULL");
    CHECK(model == NULL);
    FAILS(amdanet_model_load(good, NULL, NULL), INVALID_ARGUMENT, "model: is NULL");
    FAILS(amdanet_model_load(missing, NULL, &model), IO, "missing: cannot open");
    FAILS(amdanet_model_load(folder, NULL, &model), IO, "cannot read");
    FAILS(amdanet_model_load(damaged, NULL, &model), BAD_FILE, "damaged");
    size_t length;
    unsigned char *bytes = contents(folder, "damaged", &length);
    FAILS(amdanet_model_load_memory(bytes, length, NULL, &model), BAD_FILE, "the checkpoint in memory");
    FAILS(amdanet_model_load_memory(bytes, 3, NULL, &model), BAD_FILE, "the checkpoint in memory");
    FAILS(amdanet_model_load_memory(bytes, 0, NULL, &model), INVALID_ARGUMENT, "length: 0");
    FAILS(amdanet_model_load_memory(bytes, SIZE_MAX, NULL, &model), INVALID_ARGUMENT, "length");
    FAILS(amdanet_model_load_memory(NULL, length, NULL, &model), INVALID_ARGUMENT, "data: is NULL");
    FAILS(amdanet_model_load_memory(bytes, length, NULL, NULL), INVALID_ARGUMENT, "model: is NULL");
    /* Said to be larger than the machine, which shows before it is read. */
    FAILS(amdanet_model_load_memory(bytes, SIZE_MAX / 4, NULL, &model), OUT_OF_MEMORY, "the network takes");
    free(bytes);
    uint64_t at = 0;
    OK(amdanet_load_params_init(&params, sizeof params));
    params.progress = stop;
    params.progress_user = &at;
    for (; at < 3; at++) {
        FAILS(amdanet_model_load(good, &params, &model), CANCELLED, "progress callback returned 1");
    }
    OK(amdanet_load_params_init(&params, sizeof params));
    params.bn_eps = -1;
    FAILS(amdanet_model_load(good, &params, &model), INVALID_ARGUMENT, "params.bn_eps: -1");
    OK(amdanet_load_params_init(&params, sizeof params));
    params.reserved = 7;
    FAILS(amdanet_model_load(good, &params, &model), INVALID_ARGUMENT, "params.reserved: 7");
    params.struct_size = 3;
    FAILS(amdanet_model_load(good, &params, &model), INVALID_ARGUMENT, "struct_size: 3");
    CHECK(model == NULL && alive != NULL);
    free(missing);
    free(damaged);
    free(good);
}

static void making(const amdanet_model *model)
{
    amdanet_session_params params;
    amdanet_session *session = NULL;
    FAILS(amdanet_session_create(NULL, NULL, &session), INVALID_ARGUMENT, "model: is NULL");
    FAILS(amdanet_session_create(model, NULL, NULL), INVALID_ARGUMENT, "session: is NULL");
#define PARAM(field, value, status, words)                                                                 \
    OK(amdanet_session_params_init(&params, sizeof params));                                               \
    params.field = value;                                                                                  \
    FAILS(amdanet_session_create(model, &params, &session), status, words);                                \
    CHECK(session == NULL)
    PARAM(struct_size, 1, INVALID_ARGUMENT, "struct_size");
    PARAM(device, AMDANET_DEVICE_KIND_CUDA, UNSUPPORTED, "cuda:0");
    PARAM(device, 3, INVALID_ARGUMENT, "params.device: 3");
    PARAM(ordinal, 1, INVALID_ARGUMENT, "params.ordinal: 1");
    PARAM(precision, AMDANET_PRECISION_F16, UNSUPPORTED, "params.precision");
    PARAM(precision, 4, INVALID_ARGUMENT, "params.precision: 4");
    PARAM(threads, 1025, INVALID_ARGUMENT, "params.threads: 1025");
    PARAM(queue, 65, INVALID_ARGUMENT, "params.queue: 65");
    PARAM(timing, 2, INVALID_ARGUMENT, "params.timing: 2");
    PARAM(width, 64, INVALID_ARGUMENT, "params.width and params.height: 64x0");
    OK(amdanet_session_params_init(&params, sizeof params));
    params.width = params.height = 16384;
    /* Also where a machine has that much. */
    struct rlimit before, limit;
    CHECK(getrlimit(RLIMIT_AS, &before) == 0);
    limit = before;
    limit.rlim_cur = (rlim_t)16 << 30;
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    FAILS(amdanet_session_create(model, &params, &session), OUT_OF_MEMORY, "a frame of 16384x16384 pixels takes");
    CHECK(setrlimit(RLIMIT_AS, &before) == 0);
    params.width = params.height = 64;
    params.memory_limit = 1000;
    FAILS(amdanet_session_create(model, &params, &session), OUT_OF_MEMORY, "memory_limit = 1000");
}

static void fixed(const amdanet_model *model, const struct pair *pair)
{
    amdanet_session_params params;
    amdanet_session *session = NULL;
    amdanet_frame frame = frame_of(pair);
    OK(amdanet_session_params_init(&params, sizeof params));
    params.width = params.height = 32;
    OK(amdanet_session_create(model, &params, &session));
    FAILS(amdanet_session_run(session, &frame), INVALID_ARGUMENT, "48x40, and the session was made for 32x32");
    amdanet_session_free(session);
    uint64_t at = 10;
    OK(amdanet_session_params_init(&params, sizeof params));
    params.progress = stop;
    params.progress_user = &at;
    params.memory_limit = 30000000;
    OK(amdanet_session_create(model, &params, &session));
    FAILS(amdanet_session_run(session, &frame), CANCELLED, "returned 1 after 10 of");
    at = 0;
    OK(amdanet_session_run(session, &frame));
    /* The buffers end nowhere near, but memory is asked for first. */
    frame.width = frame.height = 4096;
    frame.visible.length = frame.infrared.length = frame.fused.length = frame.labels.length = 4096U * 4096 * 3;
    FAILS(amdanet_session_run(session, &frame), OUT_OF_MEMORY, "memory_limit = 30000000");
    amdanet_session_free(session);
}

static void frames(amdanet_session *session, const struct pair *pair)
{
    amdanet_frame frame = frame_of(pair);
    uint64_t ticket = 0;
    FAILS(amdanet_session_run(NULL, &frame), INVALID_ARGUMENT, "session: is NULL");
    FAILS(amdanet_session_run(session, NULL), INVALID_ARGUMENT, "frame: is NULL");
    FAILS(amdanet_session_submit(session, &frame, NULL), INVALID_ARGUMENT, "ticket: is NULL");
    FAILS(amdanet_session_submit(NULL, &frame, &ticket), INVALID_ARGUMENT, "session: is NULL");
#define FRAME(change, status, words)                                                                       \
    frame = frame_of(pair);                                                                                \
    change;                                                                                                \
    FAILS(amdanet_session_run(session, &frame), status, words);                                            \
    FAILS(amdanet_session_submit(session, &frame, &ticket), status, words)
    FRAME(frame.struct_size = 20, INVALID_ARGUMENT, "amdanet_frame.struct_size: 20");
    FRAME(frame.width = 31, INVALID_ARGUMENT, "frame.width: 31 pixels");
    FRAME(frame.height = 16385, INVALID_ARGUMENT, "frame.height: 16385 pixels");
    FRAME(frame.visible.data = NULL, INVALID_ARGUMENT, "frame.visible.data: is NULL");
    FRAME(frame.infrared.length--, INVALID_ARGUMENT, "frame.infrared.length: 1919 bytes: 40 rows take 1920");
    FRAME(frame.visible.stride = 143, INVALID_ARGUMENT, "frame.visible.stride: 143 bytes are less than the 144");
    FRAME(frame.visible.stride = SIZE_MAX, INVALID_ARGUMENT, "frame.visible.stride");
    FRAME(frame.visible.stride = SIZE_MAX / 40, INVALID_ARGUMENT, "frame.visible.stride");
    FRAME(frame.visible.channels = 5, INVALID_ARGUMENT, "frame.visible.channels: 5");
    FRAME(frame.visible.type = 3, INVALID_ARGUMENT, "frame.visible.type: 3");
    FRAME(frame.visible.memory = 2, INVALID_ARGUMENT, "frame.visible.memory: 2");
    FRAME(frame.visible.reserved = 1, INVALID_ARGUMENT, "frame.visible.reserved: 1");
    FRAME(frame.visible.memory = AMDANET_MEMORY_CUDA, UNSUPPORTED, "frame.visible.memory");
    FRAME(frame.fused.memory = AMDANET_MEMORY_CUDA, UNSUPPORTED, "frame.fused.memory");
    FRAME(frame.stream = &ticket, UNSUPPORTED, "frame.stream");
    FRAME(frame.infrared.black = frame.infrared.white = 5, INVALID_ARGUMENT, "frame.infrared.black and");
    FRAME(frame.fused.length = 5759, INVALID_ARGUMENT, "frame.fused.length: 5759");
    FRAME(frame.fused.reserved = 1, INVALID_ARGUMENT, "frame.fused.reserved: 1");
    FRAME(frame.fused_channels = AMDANET_CHANNELS_GRAY, INVALID_ARGUMENT, "frame.fused_channels");
    FRAME(frame.fused_channels = 9, INVALID_ARGUMENT, "frame.fused_channels: 9");
    FRAME(frame.fused_type = AMDANET_TYPE_U16, INVALID_ARGUMENT, "frame.fused_type");
    FRAME(frame.labels.stride = 47, INVALID_ARGUMENT, "frame.labels.stride: 47");
    FRAME(frame.probabilities.data = &frame; frame.probabilities.length = 40 * 48 * 4 * 5 - 1, INVALID_ARGUMENT,
          "frame.probabilities.length");
    FRAME(frame.fused.data = frame.labels.data = NULL, INVALID_ARGUMENT, "ask for one of them");
    CHECK(ticket == 0);
    FAILS(amdanet_session_wait(session, 1, 0), INVALID_ARGUMENT, "ticket: 1 was never given");
    FAILS(amdanet_session_wait(NULL, 1, 0), INVALID_ARGUMENT, "session: is NULL");

    /* Floats are looked at when they are read; the session goes on after that. */
    float *numbers = (float *)calloc(48 * 40 * 3, 4);
    CHECK(numbers != NULL);
    numbers[(7 * 48 + 5) * 3 + 1] = 1.5F;
    frame = frame_of(pair);
    frame.visible.data = numbers;
    frame.visible.length = 48 * 40 * 3 * 4;
    frame.visible.type = AMDANET_TYPE_F32;
    FAILS(amdanet_session_run(session, &frame), INVALID_ARGUMENT, "frame.visible: the number 1.5 at x 5, y 7");
    OK(amdanet_session_submit(session, &frame, &ticket));
    CHECK(ticket != 0);
    FAILS(amdanet_session_wait(session, ticket, AMDANET_WAIT_FOREVER), INVALID_ARGUMENT, "the number 1.5");
    FAILS(amdanet_session_wait(session, ticket, 0), INVALID_ARGUMENT, "waited for already");
    free(numbers);
    frame = frame_of(pair);
    OK(amdanet_session_run(session, &frame));

    amdanet_session_info info;
    amdanet_step step;
    info.struct_size = sizeof info;
    step.struct_size = sizeof step;
    FAILS(amdanet_session_get_info(session, NULL), INVALID_ARGUMENT, "info: is NULL");
    FAILS(amdanet_session_get_info(NULL, &info), INVALID_ARGUMENT, "session: is NULL");
    FAILS(amdanet_session_get_step(session, 0, &step), INVALID_ARGUMENT, "index: 0: no times are known");
    FAILS(amdanet_session_get_step(NULL, 0, &step), INVALID_ARGUMENT, "session: is NULL");
}

static void handles(const char *folder, struct pair *pair)
{
    amdanet_model *model = network(folder);
    amdanet_session *session = session_of(model, 1);
    amdanet_frame frame = frame_of(pair);
    amdanet_model_info info;
    info.struct_size = sizeof info;
    FAILS(amdanet_session_run((amdanet_session *)(void *)model, &frame), INVALID_ARGUMENT, "is no session");
    amdanet_model_free(model);
    amdanet_model_free(model);
    amdanet_model_free((amdanet_model *)(void *)&info);
    FAILS(amdanet_model_get_info(model, &info), INVALID_ARGUMENT, "model");
    amdanet_session_free(session);
    amdanet_session_free(session);
    FAILS(amdanet_session_run(session, &frame), INVALID_ARGUMENT, "session");
    amdanet_model_free(NULL);
    amdanet_session_free(NULL);
}

static void take_line(void *user, uint32_t level, const char *message)
{
    CHECK(level <= AMDANET_LOG_LEVEL_DEBUG);
    CHECK(strchr(message, '\n') == NULL);
    ++*(int *)user;
}

int main(int count, char **arguments)
{
    CHECK(count == 2);
    messages();
    int lines = 0;
    FAILS(amdanet_set_log(take_line, &lines, 4), INVALID_ARGUMENT, "most: 4");
    OK(amdanet_set_log(take_line, &lines, AMDANET_LOG_LEVEL_DEBUG));
    amdanet_model *model = network(arguments[1]);
    struct pair pair = make_pair(WIDTH, HEIGHT);
    amdanet_session *session = session_of(model, 1);
    structures(model);
    loading(arguments[1], model);
    making(model);
    fixed(model, &pair);
    frames(session, &pair);
    CHECK(lines > 3);
    OK(amdanet_set_log(NULL, NULL, 0));
    lines = 0;
    handles(arguments[1], &pair);
    CHECK(lines == 0);
    amdanet_session_free(session);
    amdanet_model_free(model);
    free_pair(&pair);
    return 0;
}
