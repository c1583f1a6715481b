/* The results are those of the library's engine, byte for byte, from and to every format. */
#include "check.h"

static unsigned char *visible, *infrared, *fused, *labels, *image, *probabilities;

/* Pixel formats in memory with bytes between rows and at an odd address. */
struct strided {
    unsigned char *start, *data;
    size_t length, stride;
};

static struct strided make_strided(size_t row)
{
    struct strided it;
    it.stride = row + 13;
    it.length = (HEIGHT - 1) * it.stride + row;
    it.start = (unsigned char *)malloc(it.length + 1);
    CHECK(it.start != NULL);
    memset(it.start, 0xAB, it.length + 1);
    it.data = it.start + 1;
    return it;
}

static size_t count_of(uint32_t channels)
{
    return channels == AMDANET_CHANNELS_GRAY ? 1 : channels >= AMDANET_CHANNELS_RGBA ? 4 : 3;
}

static size_t bytes_of(uint32_t type)
{
    return type == AMDANET_TYPE_U8 ? 1 : type == AMDANET_TYPE_U16 ? 2 : 4;
}

/* Where red, green and blue are. */
static size_t place_of(uint32_t channels, size_t channel)
{
    int reversed = channels == AMDANET_CHANNELS_BGR || channels == AMDANET_CHANNELS_BGRA;
    return reversed ? 2 - channel : channel;
}

/* The prepared picture, RGB or gray in bytes, in another format. */
static struct strided convert(const unsigned char *from, uint32_t channels, uint32_t type)
{
    size_t count = count_of(channels), size = bytes_of(type), colors = count == 1 ? 1 : 3;
    struct strided to = make_strided(WIDTH * count * size);
    for (size_t y = 0; y < HEIGHT; y++) {
        for (size_t x = 0; x < WIDTH; x++) {
            for (size_t c = 0; c < colors; c++) {
                unsigned char byte = from[(y * WIDTH + x) * colors + c];
                unsigned char *at = to.data + y * to.stride + (x * count + place_of(channels, c)) * size;
                uint16_t wide = (uint16_t)(byte * 257);
                float number = (float)byte / 255.0F;
                memcpy(at, type == AMDANET_TYPE_U8 ? (void *)&byte : type == AMDANET_TYPE_U16 ? (void *)&wide : (void *)&number, size);
            }
            if (count == 4 && type == AMDANET_TYPE_F32) {
                memset(to.data + y * to.stride + (x * 4 + 3) * 4, 0, 4);
            }
        }
    }
    return to;
}

static amdanet_picture picture(const struct strided *from, uint32_t channels, uint32_t type)
{
    amdanet_picture picture;
    memset(&picture, 0, sizeof picture);
    picture.data = from->data;
    picture.length = from->length;
    picture.stride = from->stride;
    picture.channels = channels;
    picture.type = type;
    return picture;
}

static amdanet_frame plain(const struct pair *pair)
{
    amdanet_frame frame = frame_of(pair);
    frame.visible.data = visible;
    frame.infrared.data = infrared;
    memset(pair->fused, 0, WIDTH * HEIGHT * 3);
    memset(pair->labels, 0xFF, WIDTH * HEIGHT);
    return frame;
}

static void check_pair(const struct pair *pair)
{
    CHECK(memcmp(pair->fused, fused, WIDTH * HEIGHT * 3) == 0);
    CHECK(memcmp(pair->labels, labels, WIDTH * HEIGHT) == 0);
}

static void every_format_in(amdanet_session *session, const struct pair *pair)
{
    for (uint32_t type = AMDANET_TYPE_U8; type <= AMDANET_TYPE_F32; type++) {
        for (uint32_t channels = AMDANET_CHANNELS_RGB; channels <= AMDANET_CHANNELS_BGRA; channels++) {
            amdanet_frame frame = plain(pair);
            struct strided first = convert(visible, channels, type);
            struct strided second = convert(infrared, AMDANET_CHANNELS_GRAY, type);
            frame.visible = picture(&first, channels, type);
            frame.infrared = picture(&second, AMDANET_CHANNELS_GRAY, type);
            OK(amdanet_session_run(session, &frame));
            check_pair(pair);
            free(first.start);
            free(second.start);
        }
    }
    /* A range: half the numbers of twice the range, shifted. 14 bits in 16 are such a case. */
    amdanet_frame frame = plain(pair);
    struct strided shifted = make_strided(WIDTH * 2);
    for (size_t y = 0; y < HEIGHT; y++) {
        for (size_t x = 0; x < WIDTH; x++) {
            uint16_t number = (uint16_t)(7000 + infrared[y * WIDTH + x] * 8);
            memcpy(shifted.data + y * shifted.stride + x * 2, &number, 2);
        }
    }
    frame.infrared = picture(&shifted, AMDANET_CHANNELS_GRAY, AMDANET_TYPE_U16);
    frame.infrared.black = 7000;
    frame.infrared.white = 7000 + 255 * 8;
    OK(amdanet_session_run(session, &frame));
    check_pair(pair);
    free(shifted.start);
}

static void every_format_out(amdanet_session *session, const struct pair *pair)
{
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t channels = i / 2, type = i % 2 == 0 ? AMDANET_TYPE_U8 : AMDANET_TYPE_F32;
        size_t count = count_of(channels), size = bytes_of(type);
        amdanet_frame frame = plain(pair);
        struct strided to = make_strided(WIDTH * count * size);
        struct strided classes = make_strided(WIDTH);
        struct strided scores = make_strided(WIDTH * CLASSES * 4);
        frame.fused.data = to.data;
        frame.fused.length = to.length;
        frame.fused.stride = to.stride;
        frame.fused_channels = channels;
        frame.fused_type = type;
        frame.labels.data = classes.data;
        frame.labels.length = classes.length;
        frame.labels.stride = classes.stride;
        frame.probabilities.data = scores.data;
        frame.probabilities.length = scores.length;
        frame.probabilities.stride = scores.stride;
        OK(amdanet_session_run(session, &frame));
        const unsigned char *want = type == AMDANET_TYPE_U8 ? fused : image;
        const float one = 1.0F;
        for (size_t y = 0; y < HEIGHT; y++) {
            const unsigned char *row = to.data + y * to.stride;
            for (size_t x = 0; x < WIDTH; x++, row += count * size) {
                for (size_t c = 0; c < 3; c++) {
                    CHECK(memcmp(row + place_of(channels, c) * size, want + ((y * WIDTH + x) * 3 + c) * size, size) == 0);
                }
                CHECK(count == 3 || (size == 1 ? row[3] == 255 : memcmp(row + 12, &one, 4) == 0));
            }
            CHECK(memcmp(classes.data + y * classes.stride, labels + y * WIDTH, WIDTH) == 0);
            CHECK(memcmp(scores.data + y * scores.stride, probabilities + y * WIDTH * CLASSES * 4, WIDTH * CLASSES * 4) == 0);
            /* What lies between rows is the caller's. */
            CHECK(y + 1 == HEIGHT || (row[0] == 0xAB && row[12] == 0xAB));
        }
        free(to.start);
        free(classes.start);
        free(scores.start);
    }
}

/* Each result alone, and over the picture that it was made of. */
static void any_results(amdanet_session *session, const struct pair *pair)
{
    amdanet_frame frame = plain(pair);
    frame.fused.data = NULL;
    OK(amdanet_session_run(session, &frame));
    CHECK(memcmp(pair->labels, labels, WIDTH * HEIGHT) == 0);
    frame = plain(pair);
    frame.labels.data = NULL;
    memcpy(pair->fused, visible, WIDTH * HEIGHT * 3);
    frame.visible.data = pair->fused;
    OK(amdanet_session_run(session, &frame));
    CHECK(memcmp(pair->fused, fused, WIDTH * HEIGHT * 3) == 0);
}

static int32_t count_calls(void *user, uint64_t done, uint64_t total)
{
    uint64_t *calls = (uint64_t *)user;
    CHECK(done <= total);
    ++*calls;
    return 0;
}

static void steps(const amdanet_model *model, const struct pair *pair)
{
    amdanet_session_params params;
    amdanet_session *session = NULL;
    amdanet_session_info info;
    amdanet_frame frame = plain(pair);
    uint64_t calls = 0, operations = 0;
    double milliseconds = 0;
    OK(amdanet_session_params_init(&params, sizeof params));
    params.width = WIDTH;
    params.height = HEIGHT;
    params.threads = 2;
    params.timing = 1;
    params.progress = count_calls;
    params.progress_user = &calls;
    OK(amdanet_session_create(model, &params, &session));
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    OK(amdanet_session_get_info(session, &info));
    CHECK(info.device == AMDANET_DEVICE_KIND_CPU && info.ordinal == 0 && info.precision == AMDANET_PRECISION_F32);
    CHECK(info.threads == 2 && info.memory > 100000 && info.steps == 0 && info.submitted == 0);
    OK(amdanet_session_run(session, &frame));
    check_pair(pair);
    OK(amdanet_session_get_info(session, &info));
    CHECK(info.steps > 20 && info.steps == calls);
    for (uint32_t i = 0; i < info.steps; i++) {
        amdanet_step step;
        step.struct_size = sizeof step;
        OK(amdanet_session_get_step(session, i, &step));
        CHECK(strlen(step.name) > 3 && step.milliseconds >= 0 && step.bytes > 0);
        milliseconds += step.milliseconds;
        operations += step.operations;
    }
    CHECK(milliseconds > 0 && operations > 1000000);
    FAILS(amdanet_session_get_step(session, info.steps, NULL), INVALID_ARGUMENT, "index");
    amdanet_session_free(session);
}

static void properties(const amdanet_model *model)
{
    amdanet_model_info info;
    info.struct_size = sizeof info;
    OK(amdanet_model_get_info(model, &info));
    CHECK(strcmp(info.arch, "release") == 0 && strcmp(info.encoder, "nano") == 0);
    CHECK(info.classes == CLASSES && info.smallest_side == 32 && info.largest_side == 16384);
    CHECK(info.parameters > 100000);
    amdanet_class survivor;
    survivor.struct_size = sizeof survivor;
    OK(amdanet_model_get_class(model, 4, &survivor));
    CHECK(strcmp(survivor.name, "survivor") == 0);
    CHECK(survivor.color[0] == 86 && survivor.color[1] == 180 && survivor.color[2] == 233 && survivor.color[3] == 255);
    CHECK(amdanet_version() == AMDANET_VERSION && strstr(amdanet_build_info(), "amdanet 0.1.0") != NULL);
    CHECK(amdanet_device_count() >= 1);
    amdanet_device device;
    device.struct_size = sizeof device;
    OK(amdanet_get_device(0, &device));
    CHECK(device.kind == AMDANET_DEVICE_KIND_CPU && device.usable == 1 && strlen(device.name) > 3);
}

int main(int count, char **arguments)
{
    size_t length;
    amdanet_load_params params;
    uint64_t calls = 0;
    CHECK(count == 2);
    const char *folder = arguments[1];
    visible = contents(folder, "visible", &length);
    infrared = contents(folder, "infrared", &length);
    fused = contents(folder, "fused", &length);
    labels = contents(folder, "labels", &length);
    image = contents(folder, "image", &length);
    probabilities = contents(folder, "probabilities", &length);

    unsigned char *bytes = contents(folder, "network.safetensors", &length);
    amdanet_model *model = NULL;
    OK(amdanet_load_params_init(&params, sizeof params));
    params.progress = count_calls;
    params.progress_user = &calls;
    OK(amdanet_model_load_memory(bytes, length, &params, &model));
    free(bytes);
    CHECK(calls == 3);
    properties(model);
    struct pair pair = make_pair(WIDTH, HEIGHT);
    steps(model, &pair);
    amdanet_session *session = session_of(model, 2);
    /* A session needs its model no longer. */
    amdanet_model_free(model);
    every_format_in(session, &pair);
    every_format_out(session, &pair);
    any_results(session, &pair);
    amdanet_session_free(session);

    free_pair(&pair);
    free(visible);
    free(infrared);
    free(fused);
    free(labels);
    free(image);
    free(probabilities);
    return 0;
}
