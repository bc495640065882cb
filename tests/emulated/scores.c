/* Sums of boxes by rmac/cpu/scores.h against sums in float64. Prints how many are wrong. */

#include <stdio.h>
#include <stdlib.h>

#include "lines.h"

#include "scores.h"

#ifndef DIGITS
#define DIGITS 3 /* never used */
#endif

enum { BOXES = 37, QUERIES = 6, STEP = 512 };

static unsigned state = 1;
static unsigned draw(void) { return (state = state * 1664525u + 1013904223u) >> 8; }

static char cells[2][BOXES * STEP] __attribute__((aligned(LINE)));
static char queries[QUERIES * 1024] __attribute__((aligned(LINE)));
static double elements[QUERIES][256];
static float out[(QUERIES + 1) * BOXES + 1];

static void fill_numbers(int lanes)
{
    float *numbers = (float *)cells, *of_queries = (float *)queries;
    for (size_t i = 0; i < sizeof(cells) / sizeof(float); i++)
        numbers[i] = draw() / 1e7f - 0.5f;
    for (int i = 0; i < QUERIES * lanes; i++)
        elements[i / lanes][i % lanes] = of_queries[i] = draw() / 1e7f - 0.8f;
}

static void fill_digits(int lanes)
{
    const float scale = 1 / 1024.0f;
    for (size_t i = 0; i < sizeof(cells); i++)
        cells[0][i] = draw();
    for (int query = 0; query < QUERIES; query++) {
        signed char *digits = (signed char *)queries + query * (DIGITS * lanes + LINE);
        for (int i = 0; i < lanes; i++) {
            double value = 0;
            for (int j = 0; j < DIGITS; j++)
                value = value * 256 + (digits[j * lanes + i] = draw() % 255 - 127);
            elements[query][i] = value * scale;
        }
        memcpy(digits + DIGITS * lanes, &scale, sizeof(scale));
    }
}

static double number(const char *cell, int i, int digits)
{
    return digits ? ((const unsigned char *)cell)[i] : ((const float *)cell)[i];
}

static int is_wrong(float sum, int box, int query, int lanes, int digits)
{
    double expected = 0, size = 0;
    for (int i = 0; i < lanes; i++) {
        const double a = number(cells[0] + box * STEP, i, digits);
        const double b = number(cells[1] + box * STEP, i, digits);
        const double maximum = a > b ? a : b;
        const double one = maximum * (query < 0 ? maximum : elements[query][i]);
        expected += one;
        size += fabs(one);
    }
    return !(fabs(sum - expected) <= 3e-7 * size);
}

static int count_wrong(int boxes, int n_queries, int lines, int digits)
{
    const Parts parts = {cells[0], cells[1], STEP};
    const int lanes = digits ? lines * LINE : lines * LINE / (int)sizeof(float);
    int wrong = 0;
    (digits ? fill_digits : fill_numbers)(lanes);
    out[(n_queries + 1) * boxes] = 7;
    (digits ? score_digits : score_floats)(parts, boxes, queries, n_queries, out, lines);
    for (int i = 0; i < (n_queries + 1) * boxes; i++)
        wrong += is_wrong(out[i], i % boxes, i / boxes - 1, lanes, digits);
    return wrong + (out[(n_queries + 1) * boxes] != 7);
}

int main(int count, char **options)
{
    int sums = 0, wrong = 0;
    const int kinds = count > 1 && !strcmp(options[1], "digits") ? 2 : 1;
    for (int digits = 0; digits < kinds; digits++)
        for (int lines = 1; lines <= (digits ? DIGIT_LINES : MOST_LINES); lines++)
            for (int boxes = 1; boxes <= BOXES; boxes += 1 + boxes / 8)
                for (int n_queries = 1; n_queries <= QUERIES; n_queries += 1 + n_queries / 3) {
                    wrong += count_wrong(boxes, n_queries, lines, digits);
                    sums += (n_queries + 1) * boxes;
                }
    printf("%d sums, %d wrong\n", sums, wrong);
    return wrong != 0;
}
