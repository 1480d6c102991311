package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"auditsink/config"
)

// executeConfig runs a command line and returns its exit code and what it printed.
func executeConfig(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = run(t.Context(), append([]string{"config"}, args...), strings.NewReader(""), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func TestConfigCheck(t *testing.T) {
	t.Setenv("AUDITSINK_KAFKA_BROKERS", "k1:9092,k2:9092")
	t.Setenv("AUDITSINK_KAFKA_TOPICS", "audit")
	t.Setenv("AUDITSINK_POSTGRES_URL", "postgres://u:hunter2@h/d")
	code, out, errs := executeConfig(t, "check")
	require.Zero(t, code, errs)
	require.Empty(t, errs)
	require.Regexp(t, `(?m)^AUDITSINK_KAFKA_BROKERS +k1:9092,k2:9092$`, out)
	require.Regexp(t, `(?m)^AUDITSINK_POSTGRES_URL +\(set\)$`, out)
	require.Regexp(t, `(?m)^AUDITSINK_KAFKA_SASL_PASSWORD +\(not set\)$`, out)
	require.Regexp(t, `(?m)^AUDITSINK_FLUSH_BYTES +8MiB$`, out)
	require.Equal(t, len(config.Default().Settings()), strings.Count(out, "\n"))
	require.NotContains(t, out, "hunter2")
}

func TestConfigCheckReportsAllProblems(t *testing.T) {
	t.Setenv("AUDITSINK_KAFKA_BROKERS", "")
	t.Setenv("AUDITSINK_KAFKA_TOPICS", "audit")
	t.Setenv("AUDITSINK_POSTGRES_URL", "mysql://u:hunter2@h/d")
	t.Setenv("AUDITSINK_FLUSH_ROW", "1")
	code, out, errs := executeConfig(t, "check")
	require.Equal(t, exitUsage, code)
	require.Empty(t, out)
	for _, part := range []string{"3 problems", "AUDITSINK_KAFKA_BROKERS is not set", "AUDITSINK_POSTGRES_URL", "Did you mean AUDITSINK_FLUSH_ROWS?"} {
		require.Contains(t, errs, part)
	}
	require.NotContains(t, errs, "hunter2")
}

// The files that the settings name are opened too.
func TestConfigCheckOpensFiles(t *testing.T) {
	t.Setenv("AUDITSINK_KAFKA_BROKERS", "k1:9092")
	t.Setenv("AUDITSINK_KAFKA_TOPICS", "audit")
	t.Setenv("AUDITSINK_POSTGRES_URL", "host=h")
	t.Setenv("AUDITSINK_KAFKA_TLS", "true")
	t.Setenv("AUDITSINK_KAFKA_TLS_CA_FILE", filepath.Join(t.TempDir(), "ca.pem"))
	code, out, errs := executeConfig(t, "check")
	require.Equal(t, exitUsage, code)
	require.Empty(t, out)
	require.Contains(t, errs, "AUDITSINK_KAFKA_TLS_CA_FILE")
	require.Contains(t, errs, "no such file")
}

func TestConfigReference(t *testing.T) {
	code, out, errs := executeConfig(t, "reference")
	require.Zero(t, code, errs)
	require.Equal(t, config.Reference(), out)
}
