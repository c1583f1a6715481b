// Fuses a pair of pictures and labels every pixel: binary PPM and PGM files in and out, of 8 bits.
//
//     c++ -std=c++17 -o fuse fuse.cpp $(pkg-config --cflags --libs amdanet)
//     ./fuse WEIGHTS VISIBLE.ppm INFRARED.pgm FUSED.ppm LABELS.pgm
#include "amdanet.hpp"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <limits>
#include <vector>

struct Image {
    std::uint32_t width, height;
    std::vector<char> pixels;
};

// The next number of a header, after white space and comments; 0 where there is none.
static std::uint32_t read_number(std::istream &file)
{
    while ((file >> std::ws).peek() == '#') {
        file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    }
    std::uint32_t number = 0;
    return file >> number ? number : 0;
}

static Image read_image(const std::string &path, const std::string &kind)
{
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw std::runtime_error(path + ": " + std::strerror(errno));
    }
    std::string magic(2, ' ');
    file.read(magic.data(), 2);
    const std::uint32_t width = read_number(file), height = read_number(file), most = read_number(file);
    file.get();
    if (!file || magic != kind || width == 0 || height == 0 || width > 16384 || height > 16384 || most != 255) {
        throw std::runtime_error(path + ": must be a binary " + (kind == "P6" ? "PPM (P6)" : "PGM (P5)") +
                                 " with numbers to 255, and no side above 16384 pixels");
    }
    Image image{width, height, std::vector<char>(std::size_t{kind == "P6" ? 3U : 1U} * width * height)};
    if (!file.read(image.pixels.data(), static_cast<std::streamsize>(image.pixels.size()))) {
        throw std::runtime_error(path + ": ends before its last pixel");
    }
    return image;
}

static void write_image(const std::string &path, const std::string &kind, const Image &image)
{
    std::ofstream file(path, std::ios::binary);
    file << kind << '\n' << image.width << ' ' << image.height << "\n255\n";
    file.write(image.pixels.data(), static_cast<std::streamsize>(image.pixels.size()));
    file.close();
    if (!file) {
        throw std::runtime_error(path + ": " + std::strerror(errno));
    }
}

static void fuse(char **paths)
{
    Image visible = read_image(paths[1], "P6"), infrared = read_image(paths[2], "P5");
    if (visible.width != infrared.width || visible.height != infrared.height) {
        throw std::runtime_error(std::string(paths[2]) + ": it and the visible picture must be of one size");
    }
    Image fused = visible, labels = infrared;

    amdanet::Session session{amdanet::Model(paths[0])};
    amdanet_frame frame = amdanet::frame();
    frame.width = visible.width;
    frame.height = visible.height;
    frame.visible.data = visible.pixels.data();
    frame.visible.length = visible.pixels.size();
    frame.infrared.data = infrared.pixels.data();
    frame.infrared.length = infrared.pixels.size();
    frame.infrared.channels = AMDANET_CHANNELS_GRAY;
    frame.fused.data = fused.pixels.data();
    frame.fused.length = fused.pixels.size();
    frame.labels.data = labels.pixels.data();
    frame.labels.length = labels.pixels.size();
    session.run(frame);

    write_image(paths[3], "P6", fused);
    write_image(paths[4], "P5", labels);
}

int main(int count, char **arguments)
{
    try {
        if (count != 6) {
            throw std::runtime_error("usage: fuse WEIGHTS VISIBLE.ppm INFRARED.pgm FUSED.ppm LABELS.pgm");
        }
        fuse(arguments + 1);
    } catch (const std::exception &error) {
        std::cerr << "fuse: " << error.what() << '\n';
        return EXIT_FAILURE;
    }
}
