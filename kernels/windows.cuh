// The order of windows: the pixels of an image by windows of side × side, windows row by row, and the pixels of each row
// by row, as a convolution with this kernel and stride meets them. With side 1 it is the order of the image.
#pragma once

struct Windows {
    int width, side;  // Columns of the image, a multiple of the side.

    // The place of a pixel. Images may follow one another, if their heights are multiples of the side.
    __device__ int place(int pixel) const {
        if (side == 1) return pixel;
        const int row = pixel / width, column = pixel - row * width, top = row / side, left = column / side;
        return ((top * (width / side) + left) * side + row - top * side) * side + column - left * side;
    }

    // The pixel of a place.
    __device__ int pixel(int place) const {
        if (side == 1) return place;
        const int across = width / side, row = place / side, window = row / side, top = window / across;
        return (top * side + row - window * side) * width + (window - top * across) * side + place - row * side;
    }
};
