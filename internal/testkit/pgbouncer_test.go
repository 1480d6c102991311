package testkit

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// TestPgBouncer: what belongs to a session is lost, or somebody else's, as soon as a transaction ends.
func TestPgBouncer(t *testing.T) {
	through := OwnPgBouncer(t, Postgres(t, 18))
	connect := func() *pgx.Conn {
		config, err := pgx.ParseConfig(through)
		require.NoError(t, err)
		config.DefaultQueryExecMode = pgx.QueryExecModeExec
		connection, err := pgx.ConnectConfig(t.Context(), config)
		require.NoError(t, err)
		return connection
	}
	ask := func(connection *pgx.Conn, query string) (pid int) {
		require.NoError(t, connection.QueryRow(t.Context(), query).Scan(&pid))
		return pid
	}
	one, two := connect(), connect()
	first := ask(one, "SELECT pg_backend_pid()")
	require.Equal(t, first, ask(two, "SELECT pg_backend_pid()"), "clients share a session")
	tx, err := one.Begin(t.Context())
	require.NoError(t, err)
	require.Equal(t, first, ask(tx.Conn(), "SELECT pg_backend_pid()"))
	require.NotEqual(t, first, ask(two, "SELECT pg_backend_pid()"), "but for a transaction")
	require.NoError(t, tx.Rollback(t.Context()))
	require.NoError(t, one.Close(t.Context()))
	require.NoError(t, two.Close(t.Context()))
}
