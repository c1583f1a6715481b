// Fuses a pair of pictures and labels every pixel: binary PPM and PGM files of 8 bits in and out.
//     c++ -std=c++17 -o fuse fuse.cpp $(pkg-config --cflags --libs amdanet)
//     ./fuse WEIGHTS VISIBLE.ppm INFRARED.pgm FUSED.ppm LABELS.pgm
#include "amdanet.hpp"

#include <fstream>
#include <iostream>

struct Image {
    std::uint32_t width = 0, height = 0;
    std::string pixels;
};

static void require(bool good, const std::string &what, const char *why)
{
    if (!good) {
        throw std::runtime_error(what + ": " + why);
    }
}

// A P6 (red, green, blue) or P5 (gray) file. Each number of its header may follow comments.
static Image read_image(const std::string &path, int kind)
{
    std::ifstream file(path, std::ios::binary);
    require(file.is_open(), path, "cannot be opened");
    const bool right = file.get() == 'P' && file.get() == '0' + kind;
    Image image;
    std::uint32_t most = 0;
    for (std::uint32_t *number : {&image.width, &image.height, &most}) {
        for (std::string comment; (file >> std::ws).peek() == '#';) {
            std::getline(file, comment);
        }
        file >> *number;
    }
    require(right && file.ignore() && most == 255 && image.width <= 16384 && image.height <= 16384, path,
            kind == 6 ? "must be a binary PPM (P6) of 8 bits" : "must be a binary PGM (P5) of 8 bits");
    image.pixels.resize((kind == 6 ? 3U : 1U) * std::size_t{image.width} * image.height);
    file.read(image.pixels.data(), static_cast<std::streamsize>(image.pixels.size()));
    require(file.good(), path, "ends before its last pixel");
    return image;
}

static void write_image(const std::string &path, int kind, const Image &image)
{
    std::ofstream file(path, std::ios::binary);
    file << 'P' << kind << '\n' << image.width << ' ' << image.height << "\n255\n" << image.pixels;
    file.close();
    require(file.good(), path, "cannot be written");
}

int main(int count, char **arguments)
try {
    require(count == 6, "usage", "fuse WEIGHTS VISIBLE.ppm INFRARED.pgm FUSED.ppm LABELS.pgm");
    const Image visible = read_image(arguments[2], 6), infrared = read_image(arguments[3], 5);
    require(visible.width == infrared.width && visible.height == infrared.height, arguments[3],
            "it and the visible picture must be of one size");
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
