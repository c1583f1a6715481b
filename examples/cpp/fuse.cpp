// Fuses a pair of pictures and labels every pixel: binary PPM and PGM files in and out, of 8 bits.
//
//     c++ -std=c++17 -o fuse fuse.cpp $(pkg-config --cflags --libs amdanet)
//     ./fuse WEIGHTS VISIBLE.ppm INFRARED.pgm FUSED.ppm LABELS.pgm
#include "amdanet.hpp"

#include <cerrno>
#include <fstream>
#include <iostream>
#include <system_error>

struct Image {
    std::uint32_t width, height;
    std::string pixels;
};

// The next number of a header, after white space and comments; 0 where there is none.
static std::uint32_t read_number(std::istream &file)
{
    for (std::string comment; (file >> std::ws).peek() == '#';) {
        std::getline(file, comment);
    }
    std::uint32_t number = 0;
    return file >> number ? number : 0;
}

// `kind`: 6 for red, green and blue, 5 for gray.
static Image read_image(const std::string &path, int kind)
{
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw std::system_error(errno, std::generic_category(), path);
    }
    const bool right = file.get() == 'P' && file.get() == '0' + kind;
    Image image{read_number(file), read_number(file), {}};
    if (!right || read_number(file) != 255 || image.width > 16384 || image.height > 16384) {
        throw std::runtime_error(path + ": must be a binary " + (kind == 6 ? "PPM (P6)" : "PGM (P5)") +
                                 " with numbers to 255, and no side above 16384 pixels");
    }
    image.pixels.resize((kind == 6 ? 3U : 1U) * std::size_t{image.width} * image.height);
    if (!file.ignore().read(image.pixels.data(), static_cast<std::streamsize>(image.pixels.size()))) {
        throw std::runtime_error(path + ": ends before its last pixel");
    }
    return image;
}

static void write_image(const std::string &path, int kind, const Image &image)
{
    std::ofstream file(path, std::ios::binary);
    file << 'P' << kind << '\n' << image.width << ' ' << image.height << "\n255\n" << image.pixels;
    file.close();
    if (!file) {
        throw std::system_error(errno, std::generic_category(), path);
    }
}

int main(int count, char **arguments)
try {
    if (count != 6) {
        throw std::runtime_error("usage: fuse WEIGHTS VISIBLE.ppm INFRARED.pgm FUSED.ppm LABELS.pgm");
    }
    const Image visible = read_image(arguments[2], 6), infrared = read_image(arguments[3], 5);
    if (visible.width != infrared.width || visible.height != infrared.height) {
        throw std::runtime_error(std::string(arguments[3]) + ": it and the visible picture must be of one size");
    }
    Image fused = visible, labels = infrared;

    amdanet::Session session{amdanet::Model(arguments[1])};
    auto frame = amdanet::defaults<amdanet_frame>();
    frame.width = visible.width;
    frame.height = visible.height;
    frame.infrared.channels = AMDANET_CHANNELS_GRAY;
    amdanet::set_data(frame.visible, visible.pixels);
    amdanet::set_data(frame.infrared, infrared.pixels);
    amdanet::set_data(frame.fused, fused.pixels);
    amdanet::set_data(frame.labels, labels.pixels);
    session.run(frame);

    write_image(arguments[4], 6, fused);
    write_image(arguments[5], 5, labels);
} catch (const std::exception &error) {
    std::cerr << "fuse: " << error.what() << '\n';
    return 1;
}
