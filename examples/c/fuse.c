/* Fuses a pair of pictures and labels every pixel: binary PPM and PGM files of 8 bits in and out.
 *     cc -std=c99 -o fuse fuse.c $(pkg-config --cflags --libs amdanet)
 *     ./fuse WEIGHTS VISIBLE.ppm INFRARED.pgm FUSED.ppm LABELS.pgm */
#include <amdanet.h>
#include <stdio.h>
#include <stdlib.h>

static void require(int good, const char *what, const char *why)
{
    if (!good) {
        fprintf(stderr, "fuse: %s: %s\n", what, why);
        exit(EXIT_FAILURE);
    }
}

static void check(amdanet_status status)
{
    char message[1000];
    amdanet_last_error(message, sizeof message);
    require(status == AMDANET_STATUS_OK, amdanet_status_name(status), message);
}

/* The pixels of a P6 (red, green, blue) or P5 (gray) file. Each number of its header may follow a comment. */
static unsigned char *read_image(const char *path, int kind, unsigned *width, unsigned *height)
{
    FILE *file = fopen(path, "rb");
    require(file != NULL, path, "cannot be opened");
    unsigned most = 0, *numbers[] = {width, height, &most};
    int right = getc(file) == 'P' && getc(file) == '0' + kind;
    for (int i = 0; right && i < 3; ++i) {
        right = fscanf(file, " #%*[^\n]") == 0 && fscanf(file, "%5u", numbers[i]) == 1;
    }
    right = right && getc(file) != EOF && most == 255 && *width - 1 < 16384 && *height - 1 < 16384;
    require(right, path, kind == 6 ? "must be a binary PPM (P6) of 8 bits" : "must be a binary PGM (P5) of 8 bits");
    size_t length = (size_t)*width * *height * (kind == 6 ? 3 : 1);
    unsigned char *pixels = malloc(length);
    require(pixels != NULL && fread(pixels, 1, length, file) == length, path, "ends before its last pixel");
    fclose(file);
    return pixels;
}

static void write_image(const char *path, int kind, unsigned width, unsigned height, const void *pixels, size_t length)
{
    FILE *file = fopen(path, "wb");
    require(file != NULL, path, "cannot be written");
    fprintf(file, "P%d\n%u %u\n255\n", kind, width, height);
    size_t written = fwrite(pixels, 1, length, file);
    require(fclose(file) == 0 && written == length, path, "cannot be written");
}

int main(int count, char **arguments)
{
    require(count == 6, "usage", "fuse WEIGHTS VISIBLE.ppm INFRARED.pgm FUSED.ppm LABELS.pgm");
    unsigned w, h, width, height;
    unsigned char *visible = read_image(arguments[2], 6, &w, &h);
    unsigned char *infrared = read_image(arguments[3], 5, &width, &height);
    require(w == width && h == height, arguments[3], "it and the visible picture must be of one size");
    size_t pixels = (size_t)w * h;
    unsigned char *fused = malloc(3 * pixels), *labels = malloc(pixels);
    require(fused != NULL && labels != NULL, "out of memory", "try smaller pictures");

    amdanet_model *model = NULL;
    amdanet_session *session = NULL;
    check(amdanet_model_load(arguments[1], NULL, &model));
    check(amdanet_session_create(model, NULL, &session));
    amdanet_frame frame = {.struct_size = sizeof frame, .width = w, .height = h,
                           .visible = {.data = visible, .length = 3 * pixels},
                           .infrared = {.data = infrared, .length = pixels, .channels = AMDANET_CHANNELS_GRAY},
                           .fused = {.data = fused, .length = 3 * pixels},
                           .labels = {.data = labels, .length = pixels}};
    check(amdanet_session_run(session, &frame));
    write_image(arguments[4], 6, w, h, fused, 3 * pixels);
    write_image(arguments[5], 5, w, h, labels, pixels);
    amdanet_session_free(session);
    amdanet_model_free(model);
    free(visible), free(infrared), free(fused), free(labels);
    return EXIT_SUCCESS;
}
