package testkit

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

func TestStandby(t *testing.T) {
	primary := OwnPostgres(t, PostgresOptions{Version: 15, Password: "it's a p w/d"})
	require.NoError(t, primary.exec(t.Context(), "CREATE TABLE t (i int)"))
	standby := ownStandby(t, primary, "second")
	insert := func(server *PostgresServer, i int) error {
		connection, err := pgx.Connect(t.Context(), server.URL("postgres"))
		require.NoError(t, err)
		_, err = connection.Exec(t.Context(), "INSERT INTO t VALUES ($1)", i)
		require.NoError(t, connection.Close(context.WithoutCancel(t.Context())))
		return err
	}
	rows := func(server *PostgresServer) []int32 {
		got, err := ask[[]int32](t.Context(), server, "SELECT array_agg(i ORDER BY i) FROM t")
		require.NoError(t, err)
		return got
	}
	var refused *pgconn.PgError
	require.ErrorAs(t, insert(standby, 0), &refused)
	require.Equal(t, "25006", refused.Code, "read_only_sql_transaction")

	// Synchronous: what is committed is on the standby, and without the standby nothing is.
	require.NoError(t, primary.Synchronous(t.Context(), "second"))
	require.NoError(t, insert(primary, 1))
	require.NoError(t, standby.HoldBack(t.Context()))
	waiting := connect(t, primary.URL("postgres"))
	committed := make(chan error, 1)
	go func() {
		_, err := waiting.Exec(context.WithoutCancel(t.Context()), "INSERT INTO t VALUES (2)")
		committed <- err
	}()
	require.NoError(t, primary.waitFor(t.Context(), "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')"))
	require.Empty(t, committed)
	require.NoError(t, standby.CatchUp(t.Context()))
	require.NoError(t, <-committed)

	// Asynchronous, and held back: a failover loses what was committed.
	require.NoError(t, primary.Synchronous(t.Context()))
	require.NoError(t, standby.CatchUp(t.Context()))
	require.Equal(t, []int32{1, 2}, rows(standby))
	require.NoError(t, standby.HoldBack(t.Context()))
	require.NoError(t, insert(primary, 3))
	both := URLOf("postgres", standby, primary)
	require.Equal(t, primary.data(), value[string](t, connect(t, both), "SHOW data_directory"))
	require.NoError(t, primary.Kill())
	require.NoError(t, standby.Promote(t.Context()))
	require.NoError(t, insert(standby, 4))
	require.Equal(t, []int32{1, 2, 4}, rows(standby))
	require.Equal(t, standby.data(), value[string](t, connect(t, both), "SHOW data_directory"))

	// The new primary takes a standby in its turn, and a synchronous failover loses nothing.
	third := ownStandby(t, standby, "third")
	require.NoError(t, standby.Synchronous(t.Context(), "third"))
	require.NoError(t, insert(standby, 5))
	require.NoError(t, standby.Kill())
	require.NoError(t, third.Promote(t.Context()))
	require.NoError(t, insert(third, 6), "it waits for no standby")
	require.Equal(t, []int32{1, 2, 4, 5, 6}, rows(third))
	require.ErrorContains(t, third.CatchUp(t.Context()), "the server is no standby")
}

func TestStandbyNeedsProgram(t *testing.T) {
	_, err := PostgresServerFor(t, 18).StartStandby(t.Context(), "second")
	require.ErrorContains(t, err, "PostgreSQL 18 here has no pg_basebackup")
}

func ownStandby(t *testing.T, primary *PostgresServer, name string) *PostgresServer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	standby, err := primary.StartStandby(ctx, name)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, standby.Close()) })
	return standby
}
