package partitions

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"auditsink/migrations"
)

func openMigrated(t *testing.T, db string) *pgxpool.Pool {
	t.Helper()
	_, err := migrations.Apply(t.Context(), db)
	require.NoError(t, err)
	return open(t, db)
}

func dial(t *testing.T, db string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(context.WithoutCancel(t.Context()))) })
	return conn
}
