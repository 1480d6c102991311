package config

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReference(t *testing.T) {
	table := Reference()
	for _, s := range settings() {
		require.Equal(t, 1, strings.Count(table, "\n| `"+s.variable()+"`"), s.variable())
		require.Contains(t, table, s.Tag.Get("desc"))
		require.Equal(t, s.secret(), strings.Contains(table, "`"+s.file()+"`"), s.file())
	}
	for _, row := range []string{
		"| `AUDITSINK_KAFKA_START` | `earliest` | Where a lane starts that has neither a position nor a committed offset (one of earliest, latest) |",
		"| `AUDITSINK_POOL_MAX_CONNS` | `20` | Database connections at most, besides one for the leader's lease and, while this worker leads, one for upkeep (1 to 10000) |",
		"| `AUDITSINK_POOL_IDLE_TIMEOUT` | `30s` | Idle time after which a connection above the minimum is closed (at least 1ms) |",
		"| `AUDITSINK_POSTGRES_URL` or `AUDITSINK_POSTGRES_URL_FILE` |  | Database to store in: a postgres:// URL or key=value pairs; required by what uses it |",
	} {
		require.Contains(t, table, row+"\n")
	}
	for row := range strings.Lines(table) {
		require.Equal(t, 4, strings.Count(row, "|"), row)
	}
}

// The README's table is the reference: on a failure, put the output of `auditsink config reference` between the markers.
func TestREADMEHoldsTheReference(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	_, rest, begins := strings.Cut(string(readme), "<!-- config:begin -->\n")
	table, _, ends := strings.Cut(rest, "<!-- config:end -->")
	require.True(t, begins && ends, "README.md lacks the markers <!-- config:begin --> and <!-- config:end -->")
	require.Equal(t, strings.TrimSpace(Reference()), strings.TrimSpace(table))
}
