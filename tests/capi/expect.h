/* What the files of this program share. */
#ifndef MOESCOPE_TESTS_EXPECT_H
#define MOESCOPE_TESTS_EXPECT_H

/* Counts a check, and says what does not hold. */
void expect(int holds, const char* what, const char* file, int line);
#define EXPECT(what) expect((what) != 0, #what, __FILE__, __LINE__)

/* gpu_test.c, in a build with CUDA. */
void check_on_gpu(void);

#endif
