package testkit

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

func TestCutter(t *testing.T) {
	server := PostgresServerFor(t, 15)
	database := Postgres(t, 15)
	direct := connect(t, database)
	execute(t, direct, "CREATE TABLE t (i int, text text)")
	cutter := OwnCutter(t, server.Address())
	through, err := cutter.URL(database)
	require.NoError(t, err)

	number := 0
	insert := func(timeout time.Duration) error { // of a row of its own
		number++
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		connection, err := pgx.Connect(ctx, through)
		require.NoError(t, err)
		transaction, err := connection.Begin(ctx)
		require.NoError(t, err)
		// The text is followed by a zero byte.
		rows := pgx.CopyFromRows([][]any{{"COMMIT", number}})
		_, err = transaction.CopyFrom(ctx, pgx.Identifier{"t"}, []string{"text", "i"}, rows)
		require.NoError(t, err)
		err = transaction.Commit(ctx)
		_ = connection.Close(context.WithoutCancel(ctx)) // it may be broken
		return err
	}
	has := func() bool { // the last one
		return value[bool](t, direct, fmt.Sprintf("SELECT EXISTS (SELECT FROM t WHERE i = %d)", number))
	}
	open := func() int64 { // transactions
		return value[int64](t, direct, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'")
	}
	require.NoError(t, insert(soon))
	require.True(t, has())
	for _, forward := range []bool{false, true} {
		cutter.Once(Cut{Forward: forward})
		require.Error(t, insert(soon))
		require.Equal(t, forward, has())
		require.NoError(t, insert(soon), "only one is cut")

		cutter.Once(Cut{Forward: forward, Freeze: true})
		require.ErrorIs(t, insert(never), context.DeadlineExceeded)
		require.Eventually(t, func() bool { return has() == forward }, soon, time.Millisecond)
		if !forward {
			require.EqualValues(t, 1, open(), "the server does not see its client go")
		}
		cutter.Thaw()
		require.Eventually(t, func() bool { return open() == 0 }, soon, time.Millisecond)
	}
	require.Equal(t, 4, cutter.Cuts())

	// Again and again.
	cutter.Every(2, Cut{}, Cut{Forward: true})
	for i := range 8 {
		err := insert(soon)
		require.Equal(t, i%2 == 1, err != nil, i)
		require.Equal(t, i%4 != 1, has(), i)
	}
	outcomes := func() (cut []bool) {
		cutter.Random(7, 0.5, Cut{}, Cut{Forward: true})
		for range 12 {
			cut = append(cut, insert(soon) != nil)
		}
		return cut
	}
	first := outcomes()
	require.Contains(t, first, true)
	require.Contains(t, first, false)
	require.Equal(t, first, outcomes(), "of the same seed")
	cutter.Off()
	require.NoError(t, insert(soon))
}
