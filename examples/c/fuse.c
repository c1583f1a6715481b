/* Fuses a pair of pictures and labels every pixel: binary PPM and PGM files in and out, of 8 bits.
 *
 *     cc -std=c99 -o fuse fuse.c $(pkg-config --cflags --libs amdanet)
 *     ./fuse WEIGHTS VISIBLE.ppm INFRARED.pgm FUSED.ppm LABELS.pgm
 */
#include <amdanet.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct image {
    uint32_t width, height;
    size_t length;
    unsigned char *pixels;
};

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "fuse: %s: %s\n", what, why);
    exit(EXIT_FAILURE);
}

static void check(amdanet_status status)
{
    if (status != AMDANET_STATUS_OK) {
        char message[1000];
        amdanet_last_error(message, sizeof message);
        fail(amdanet_status_name(status), message);
    }
}

static struct image new_image(uint32_t width, uint32_t height, size_t channels)
{
    struct image image = {width, height, channels * width * height, NULL};
    image.pixels = malloc(image.length);
    if (image.pixels == NULL) {
        fail("out of memory", "try smaller pictures");
    }
    return image;
}

/* The next number of a header, after white space and comments, with the byte after it; 0 where there is none. */
static uint32_t read_number(FILE *file)
{
    uint32_t number = 0;
    int c = getc(file);
    for (int comment = 0; isspace(c) || c == '#' || (comment && c != EOF); c = getc(file)) {
        comment = c == '#' || (comment && c != '\n');
    }
    for (; isdigit(c) && number < 100000; c = getc(file)) {
        number = 10 * number + (uint32_t)(c - '0');
    }
    return isspace(c) ? number : 0;
}

/* `kind`: 6 for red, green and blue, 5 for gray. */
static struct image read_image(const char *path, int kind)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        fail(path, strerror(errno));
    }
    int right = getc(file) == 'P' && getc(file) == '0' + kind;
    uint32_t width = right ? read_number(file) : 0, height = right ? read_number(file) : 0;
    if (width == 0 || height == 0 || width > 16384 || height > 16384 || read_number(file) != 255) {
        fail(path, kind == 6 ? "must be a binary PPM (P6) with numbers to 255, and no side above 16384 pixels"
                             : "must be a binary PGM (P5) with numbers to 255, and no side above 16384 pixels");
    }
    struct image image = new_image(width, height, kind == 6 ? 3 : 1);
    if (fread(image.pixels, 1, image.length, file) != image.length) {
        fail(path, "ends before its last pixel");
    }
    fclose(file);
    return image;
}

static void write_image(const char *path, int kind, const struct image *image)
{
    FILE *file = fopen(path, "wb");
    if (file == NULL) {
        fail(path, strerror(errno));
    }
    fprintf(file, "P%d\n%u %u\n255\n", kind, (unsigned)image->width, (unsigned)image->height);
    size_t written = fwrite(image->pixels, 1, image->length, file);
    if (fclose(file) != 0 || written != image->length) {
        fail(path, strerror(errno));
    }
}

int main(int count, char **arguments)
{
    if (count != 6) {
        fail("usage", "fuse WEIGHTS VISIBLE.ppm INFRARED.pgm FUSED.ppm LABELS.pgm");
    }
    struct image visible = read_image(arguments[2], 6), infrared = read_image(arguments[3], 5);
    if (visible.width != infrared.width || visible.height != infrared.height) {
        fail(arguments[3], "it and the visible picture must be of one size");
    }
    struct image fused = new_image(visible.width, visible.height, 3);
    struct image labels = new_image(visible.width, visible.height, 1);

    amdanet_model *model = NULL;
    amdanet_session *session = NULL;
    check(amdanet_model_load(arguments[1], NULL, &model));
    check(amdanet_session_create(model, NULL, &session));

    amdanet_frame frame;
    check(amdanet_frame_init(&frame, sizeof frame));
    frame.width = visible.width;
    frame.height = visible.height;
    frame.visible.data = visible.pixels;
    frame.visible.length = visible.length;
    frame.infrared.data = infrared.pixels;
    frame.infrared.length = infrared.length;
    frame.infrared.channels = AMDANET_CHANNELS_GRAY;
    frame.fused.data = fused.pixels;
    frame.fused.length = fused.length;
    frame.labels.data = labels.pixels;
    frame.labels.length = labels.length;
    check(amdanet_session_run(session, &frame));

    write_image(arguments[4], 6, &fused);
    write_image(arguments[5], 5, &labels);
    amdanet_session_free(session);
    amdanet_model_free(model);
    free(visible.pixels);
    free(infrared.pixels);
    free(fused.pixels);
    free(labels.pixels);
    return EXIT_SUCCESS;
}
