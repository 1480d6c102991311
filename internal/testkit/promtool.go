package testkit

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Promtool lets Prometheus' own linter read metrics in the text format, and returns what it said. The
// error is that of "promtool check metrics", nil when it found nothing to complain of.
func Promtool(t testing.TB, metricsText string) (string, error) {
	t.Helper()
	promtool, err := program("promtool", "prometheus")
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(metricsText)
	output, err := cmd.CombinedOutput()
	return string(output), err
}
