# Passes on what test programs print, except for what went well, and adds up their last lines, "N passed, M failed".
# A program that ended with an error although nothing failed, or that never reached its last line, counts as a failure.
#   { a || echo "# a exited with $?"; b || echo "# b exited with $?"; } 2>&1 | awk -v programs=2 -f tests/total.awk
/^[0-9]+ passed, [0-9]+ failed$/ { programs--; passed += $1; failed += $3; last = $3; next }
/^ok / { next }
/^# .* exited with [0-9]+$/ { if (!last) { print; failed++ } last = 0; next }
{ print; fflush() }
END {
    if (programs > 0) { print programs " of the test programs did not finish"; failed += programs }
    printf "%d passed, %d failed\n", passed, failed
    exit failed > 0
}
