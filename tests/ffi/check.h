/* What the tests in C share. Each is called with the folder that tests/ffi.rs has prepared. */
#ifndef CHECK_H
#define CHECK_H

#include <amdanet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The size of the prepared pictures. */
#define WIDTH 48
#define HEIGHT 40
#define CLASSES 5

#define CHECK(condition)                                                                                   \
    do {                                                                                                   \
        if (!(condition)) {                                                                                \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition);                  \
            exit(1);                                                                                       \
        }                                                                                                  \
    } while (0)

/* A call that succeeds. */
#define OK(call) check_ends((call), AMDANET_STATUS_OK, "", #call, __LINE__)
/* A call that fails with a status, and a message that has `words` in it. */
#define FAILS(call, status, words) check_ends((call), AMDANET_STATUS_##status, words, #call, __LINE__)

static inline void check_ends(amdanet_status got, amdanet_status want, const char *words, const char *call, int line)
{
    char message[1000] = "";
    if (got != AMDANET_STATUS_OK) {
        CHECK(amdanet_last_error(message, sizeof message) < sizeof message);
    }
    if (got != want || strstr(message, words) == NULL) {
        fprintf(stderr, "line %d: %s: %d (%s), \"%s\" instead of %d with \"%s\"\n", line, call, (int)got,
                amdanet_status_name(got), message, (int)want, words);
        exit(1);
    }
}

static inline char *path_in(const char *folder, const char *name)
{
    size_t length = strlen(folder) + strlen(name) + 2;
    char *path = (char *)malloc(length);
    CHECK(path != NULL);
    snprintf(path, length, "%s/%s", folder, name);
    return path;
}

/* A whole file. */
static inline unsigned char *contents(const char *folder, const char *name, size_t *length)
{
    char *path = path_in(folder, name);
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    CHECK(fseek(file, 0, SEEK_END) == 0);
    *length = (size_t)ftell(file);
    rewind(file);
    unsigned char *bytes = (unsigned char *)malloc(*length + 1);
    CHECK(bytes != NULL && fread(bytes, 1, *length, file) == *length);
    fclose(file);
    free(path);
    return bytes;
}

static inline amdanet_model *network(const char *folder)
{
    char *path = path_in(folder, "network.safetensors");
    amdanet_model *model = NULL;
    OK(amdanet_model_load(path, NULL, &model));
    free(path);
    return model;
}

static inline amdanet_session *session_of(const amdanet_model *model, uint32_t threads)
{
    amdanet_session_params params;
    amdanet_session *session = NULL;
    OK(amdanet_session_params_init(&params, sizeof params));
    params.threads = threads;
    OK(amdanet_session_create(model, &params, &session));
    return session;
}

/* A pair of arbitrary bytes with its results. */
struct pair {
    uint32_t width, height;
    unsigned char *visible, *infrared, *fused, *labels;
};

static inline struct pair make_pair(uint32_t width, uint32_t height)
{
    struct pair pair;
    size_t pixels = (size_t)width * height;
    pair.width = width;
    pair.height = height;
    pair.visible = (unsigned char *)malloc(3 * pixels);
    pair.infrared = (unsigned char *)malloc(pixels);
    pair.fused = (unsigned char *)calloc(3, pixels);
    pair.labels = (unsigned char *)calloc(1, pixels);
    CHECK(pair.visible && pair.infrared && pair.fused && pair.labels);
    for (size_t i = 0; i < 3 * pixels; i++) {
        pair.visible[i] = (unsigned char)(i * 7 + width);
    }
    for (size_t i = 0; i < pixels; i++) {
        pair.infrared[i] = (unsigned char)(i * 5 + height);
    }
    return pair;
}

static inline void free_pair(struct pair *pair)
{
    free(pair->visible);
    free(pair->infrared);
    free(pair->fused);
    free(pair->labels);
}

/* RGB and gray in, RGB and labels out, all of them packed. */
static inline amdanet_frame frame_of(const struct pair *pair)
{
    amdanet_frame frame;
    size_t pixels = (size_t)pair->width * pair->height;
    OK(amdanet_frame_init(&frame, sizeof frame));
    frame.width = pair->width;
    frame.height = pair->height;
    frame.visible.data = pair->visible;
    frame.visible.length = 3 * pixels;
    frame.infrared.data = pair->infrared;
    frame.infrared.length = pixels;
    frame.infrared.channels = AMDANET_CHANNELS_GRAY;
    frame.fused.data = pair->fused;
    frame.fused.length = 3 * pixels;
    frame.labels.data = pair->labels;
    frame.labels.length = pixels;
    return frame;
}

#endif
