/* A selection from C, against the installed header and library. */
#include <moescope.h>
#include <stdio.h>

int main(void) {
  const double rows[2] = {0.0, 1.0};
  const double cols[3] = {0.5, 0.0, 2.0};
  moescope_shape shape = {sizeof shape,  1, 0, 2, 3, 2, 0, MOESCOPE_F64, MOESCOPE_INT32,
                          MOESCOPE_SILU, 0, 0, 0};
  moescope_execution execution = {sizeof execution, MOESCOPE_CPU, 0, NULL, NULL, NULL, 0, 1, 0, 0, 0, 0, 0};
  static _Alignas(64) char workspace[4096];
  int32_t ids[2];
  double gates[2];
  size_t bytes = 0;
  if (moescope_workspace_bytes(MOESCOPE_SELECT_FORWARD, &shape, &execution, &bytes) != MOESCOPE_OK ||
      bytes > sizeof workspace) {
    fprintf(stderr, "%s\n", moescope_last_error());
    return 1;
  }
  execution.workspace = workspace;
  execution.workspace_bytes = sizeof workspace;
  if (moescope_select_forward(&shape, &execution, rows, cols, ids, gates, NULL) != MOESCOPE_OK) {
    fprintf(stderr, "%s\n", moescope_last_error());
    return 1;
  }
  printf("libmoescope %s: experts %d and %d\n", moescope_version(), ids[0], ids[1]);
  return ids[0] == 5 && ids[1] == 2 ? 0 : 1;
}
