package performance

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
)

const december = "audit_log_2026_12"

// still keeps autovacuum away from a partition.
func (b *bed) still(partition string) {
	b.Helper()
	b.exec(`ALTER TABLE ` + partition + ` SET (autovacuum_enabled = off)`)
}

// TestRowsAndSequentialScans: rows that come and go, and partitions that are read as a whole.
func TestRowsAndSequentialScans(t *testing.T) {
	versions(t, func(b *bed) {
		b.bare()
		b.still(december)
		b.still("audit_log_2026_11")
		b.fill("2026-12", 30_000)
		b.fill("2026-11", 100)
		scan := `SELECT count(*) FROM ` + december
		b.do(scan, scan, scan)
		c := b.collector()
		b.do(`DELETE FROM audit_log WHERE principal_id LIKE 'p1%'`, `DELETE FROM audit_log_2026_11 WHERE principal_id = 'p7'`)
		dead := one[int64](b, `SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = $1`, december)
		require.Greater(b, dead, int64(10_000))
		for range manySeqScans - 2 { // and the DELETE's
			b.do(scan)
		}
		r := b.next(c).Database
		require.Empty(b, r.Unread[1:], "pg_stat_statements isn't there, and no more")
		require.Equal(b, dead+13, r.Tables.DeadRows, "p1, p10 to p19, p100 and p7 of November")
		require.Equal(b, 30_000+100-dead-13, r.Tables.LiveRows)
		require.Equal(b, []string{december, "audit_log_2026_11"}, []string{r.Tables.Dead[0].Name, r.Tables.Dead[1].Name})
		require.Equal(b, []int64{dead, 30_000 - dead, 30_000 + dead}, []int64{r.Tables.Dead[0].Dead, r.Tables.Dead[0].Live, r.Tables.Dead[0].Modified})
		require.Empty(b, r.Indexes.Missing, "nine scans, which read 9.6 times its rows, and three before")

		for range manySeqScans {
			b.do(scan, `SELECT FROM `+december+` LIMIT 1`)
		}
		r = b.next(c).Database
		require.Equal(b, []SeqScanned{{Partition: december, Scans: manySeqScans, RowsRead: manySeqScans * (30_000 - dead + 1), Rows: 30_000 - dead}}, r.Indexes.Missing[:1])
		require.Empty(b, b.next(c).Database.Indexes.Missing)

		for n := range manySeqScans/buildScans + 1 {
			b.do(fmt.Sprintf(`CREATE INDEX CONCURRENTLY built_%d ON %s (status)`, n, december))
		}
		require.Empty(b, b.next(c).Database.Indexes.Missing, "a build reads its table twice, and is no sign that an index is missing")

		b.do(`VACUUM ` + december)
		r = b.next(c).Database
		require.Equal(b, "audit_log_2026_11", r.Tables.Dead[0].Name)
		require.EqualValues(b, 13, r.Tables.DeadRows)
	})
}

// TestBlocks: what is read from the system is told from what was in memory, in the window alone.
func TestBlocks(t *testing.T) {
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: version, Settings: map[string]string{"autovacuum": "off", "max_parallel_workers": "0"}})
			db, err := server.CreateDatabase(t.Context())
			require.NoError(t, err)
			b := newBed(t, db)
			b.bare()
			b.fill("2026-12", 20_000)
			b.do(`VACUUM ANALYZE ` + december) // or the first to read a page marks it
			pages := one[int64](b, `SELECT relpages FROM pg_class WHERE relname = $1`, december)
			require.Greater(b, pages, int64(100))
			require.NoError(b, server.Restart(b.Context()))
			b.pool.Close()
			b.pool = b.open()
			c := b.collector()
			scan := `SELECT count(*) FROM ` + december + ` WHERE action = 'b'`
			b.do(scan)
			r := b.next(c).Database.Tables
			require.Equal(b, []int64{pages, 0}, []int64{r.Reads, r.Hits})
			require.InDelta(b, 0, *r.HitRatio, 0)
			b.do(scan, scan, scan)
			r = b.next(c).Database.Tables
			require.Equal(b, []int64{0, 3 * pages}, []int64{r.Reads, r.Hits})
			require.InDelta(b, 1, *r.HitRatio, 0)
			require.Equal(b, start.Add(time.Minute), r.Since)
			r = b.next(c).Database.Tables
			require.Nil(b, r.HitRatio, "nothing was needed")
		})
	}
}

// TestIndexes: scans are counted by parent index, of the window and ever; a partition that goes takes nothing from the others' window.
func TestIndexes(t *testing.T) {
	versions(t, func(b *bed) {
		b.fill("2026-12", 300)
		b.fill("2026-11", 300)
		b.fill("2026-10", 300)
		find := func(index, where string) []string {
			return []string{`SET enable_seqscan = off`, `SET enable_bitmapscan = off`, fmt.Sprintf(`SELECT %s FROM audit_log WHERE %s`, index, where)}
		}
		b.do(find("id", `correlation_id = 'p1'`)...) // in all three months
		c := b.collector()
		of := func(r Report, name string) Index {
			for _, i := range r.Database.Indexes.All {
				if i.Name == name {
					return i
				}
			}
			b.Fatalf("no index %s", name)
			return Index{}
		}
		b.do(find("id", `correlation_id = 'p1' AND timestamp >= '2026-11-01 00:00+00'`)...)
		b.do(find("id", `correlation_id = 'p2' AND timestamp >= '2026-12-01 00:00+00'`)...)
		r := b.next(c)
		size := one[int64](b, `SELECT sum(pg_relation_size(indexrelid))::bigint FROM pg_stat_user_indexes WHERE indexrelname LIKE 'audit_log_2026_%correlation_id_idx%'`)
		used := of(r, "audit_log_correlation_id_idx")
		require.Equal(b, Index{Name: "audit_log_correlation_id_idx", Partitions: 3, Scans: 3, ScansEver: 6, Bytes: size}, used)
		require.Len(b, r.Database.Indexes.All, 17)
		require.Len(b, r.Database.Indexes.Unused, 15, "all but this one and the primary key")
		require.NotContains(b, r.Database.Indexes.Unused, "audit_log_correlation_id_idx")
		require.NotContains(b, r.Database.Indexes.Unused, "audit_log_pkey")
		require.Contains(b, r.Database.Indexes.Unused, "audit_log_hash_idx")
		require.True(b, of(r, "audit_log_pkey").Unique)
		require.Empty(b, r.Database.Indexes.Invalid)
		require.WithinDuration(b, time.Now(), r.Database.Indexes.Stats, time.Hour)

		b.exec(`DROP TABLE audit_log_2026_11`)
		b.do(find("id", `correlation_id = 'p3' AND timestamp >= '2026-12-01 00:00+00'`)...)
		b.exec(`CREATE INDEX ours ON ONLY audit_log (outcome_description)`)
		b.exec(`CREATE INDEX of_december ON audit_log_2026_12 (ttl); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'of_december'::regclass`)
		r = b.next(c)
		used = of(r, "audit_log_correlation_id_idx")
		require.Equal(b, []int64{1, 5}, []int64{used.Scans, used.ScansEver})
		require.Equal(b, []string{"of_december"}, r.Database.Indexes.Invalid)

		// Somebody resets the statistics: what is told is since then, and no less than nothing.
		b.do(`SELECT pg_stat_reset()`)
		b.do(find("id", `correlation_id = 'p3' AND timestamp >= '2026-12-01 00:00+00'`)...)
		r = b.next(c)
		require.EqualValues(b, 1, of(r, "audit_log_correlation_id_idx").Scans)
		require.WithinDuration(b, time.Now(), r.Database.Indexes.Since, time.Minute)
	})
}

// TestWALAndCheckpoints: bytes a second, images of pages, and checkpoints asked for, with their times in seconds.
func TestWALAndCheckpoints(t *testing.T) {
	own(t, map[string]string{"autovacuum": "off"}, func(b *bed) {
		b.bare()
		b.fill("2026-12", 20_000)
		counts := `SELECT num_requested, write_time + sync_time FROM pg_stat_checkpointer`
		if one[bool](b, `SELECT current_setting('server_version_num')::int < 170000`) {
			counts = `SELECT checkpoints_req, checkpoint_write_time + checkpoint_sync_time FROM pg_stat_bgwriter`
		}
		requested := func() (n int64, ms float64) {
			require.NoError(b, b.pool.QueryRow(b.Context(), counts).Scan(&n, &ms))
			return n, ms
		}
		checkpoint := func() { // and its statistics, which come after it
			before, _ := requested()
			b.do(`CHECKPOINT`)
			require.Eventually(b, func() bool { n, _ := requested(); return n > before }, testTimeout, testTick)
		}
		checkpoint()
		c := b.collector()
		from := one[string](b, `SELECT pg_current_wal_lsn()::text`)
		pages := one[int64](b, `SELECT pg_relation_size($1) / 8192`, december)
		b.do(`UPDATE audit_log SET action = 'b'`) // each page for the first time since the checkpoint
		wal := one[float64](b, `SELECT (pg_current_wal_lsn() - $1::pg_lsn)::float8`, from)
		require.Greater(b, wal, float64(4*mB))
		r := b.next(c).Database
		require.InDelta(b, wal, r.WAL.Bytes, 0.1*wal)
		require.InDelta(b, float64(r.WAL.Bytes)/60, r.WAL.BytesPerSecond, 1)
		require.GreaterOrEqual(b, r.WAL.FullPageImages, pages)
		require.Less(b, r.WAL.FullPageImages, 3*pages, "the primary key's pages, and some that the server touches by itself")
		require.Greater(b, r.WAL.Records, int64(20_000))
		require.Equal(b, start, r.WAL.Since)
		require.Zero(b, r.Checkpoints.Requested)

		checkpoint()
		for range 2 {
			b.do(`UPDATE audit_log SET action = 'c' WHERE principal_id LIKE 'p1%'`)
			checkpoint()
		}
		r = b.next(c).Database
		require.EqualValues(b, 3, r.Checkpoints.Requested)
		require.Zero(b, r.Checkpoints.Timed)
		require.Greater(b, r.Checkpoints.BuffersWritten, pages)
		require.Less(b, r.Checkpoints.WriteSeconds, 30.0, "seconds, not milliseconds")
		_, ms := requested()
		require.LessOrEqual(b, 1000*(r.Checkpoints.WriteSeconds+r.Checkpoints.SyncSeconds), ms)
		require.Positive(b, r.Checkpoints.WriteSeconds+r.Checkpoints.SyncSeconds)
		require.Zero(b, b.next(c).Database.Checkpoints.Requested)

		b.do(`SELECT pg_stat_reset_shared('wal')`)
		b.do(`UPDATE audit_log SET action = 'd' WHERE principal_id LIKE 'p2%'`)
		r = b.next(c).Database
		require.Positive(b, r.WAL.Bytes)
		require.WithinDuration(b, time.Now(), r.WAL.Since, time.Minute, "from when they were reset")
	})
}

// TestActivity: connections that are held, transactions, temporary files and deadlocks.
func TestActivity(t *testing.T) {
	own(t, nil, func(b *bed) {
		b.bare()
		b.fill("2026-12", 20_000)
		c := b.collector()
		others := func(n int) { // a session that was closed ends a moment later
			require.Eventually(b, func() bool {
				return one[int](b, `SELECT count(*)::int FROM pg_stat_activity WHERE datid IS NOT NULL AND backend_type = 'client backend' AND application_name <> 'auditsink'`) == n
			}, testTimeout, testTick)
		}
		others(0)
		require.Zero(b, b.next(c).Database.Activity.Others)
		for range 3 {
			conn, err := pgx.Connect(b.Context(), b.url+"&application_name=other")
			require.NoError(b, err)
			defer conn.Close(context.WithoutCancel(b.Context())) //nolint:errcheck // a test's
		}
		b.do(`SET work_mem = '64kB'`, `SET max_parallel_workers_per_gather = 0`, `SELECT id, action, principal_id FROM audit_log ORDER BY principal_id DESC`)
		for range 5 {
			b.do(`BEGIN`, `SELECT 1`, `ROLLBACK`)
		}
		a, z := b.open(), b.open()
		first, err := a.Begin(b.Context())
		require.NoError(b, err)
		second, err := z.Begin(b.Context())
		require.NoError(b, err)
		lock := func(tx pgx.Tx, key int) error {
			_, err := tx.Exec(b.Context(), `SET LOCAL deadlock_timeout = '10ms'; SELECT pg_advisory_xact_lock(`+fmt.Sprint(key)+`)`)
			return err
		}
		require.NoError(b, lock(first, 1))
		require.NoError(b, lock(second, 2))
		waits := make(chan error, 1)
		go func() { waits <- lock(first, 2) }()
		require.Eventually(b, func() bool { return one[int](b, `SELECT count(*)::int FROM pg_locks WHERE NOT granted`) == 1 }, testTimeout, testTick)
		failed := lock(second, 1)
		require.NoError(b, second.Rollback(b.Context()))
		if err := <-waits; failed == nil {
			failed = err
		}
		require.ErrorContains(b, failed, "40P01")
		require.NoError(b, first.Rollback(b.Context()))
		a.Close() // a session that ends tells its statistics
		z.Close()

		var r *Activity
		require.Eventually(b, func() bool {
			return one[int](b, `SELECT deadlocks::int FROM pg_stat_database WHERE datname = current_database()`) == 1
		}, testTimeout, testTick)
		others(3)
		r = b.next(c).Database.Activity
		require.EqualValues(b, 3, r.Others)
		require.GreaterOrEqual(b, r.Connections, 4)
		require.LessOrEqual(b, r.Connections, 8)
		require.EqualValues(b, 1, r.TempFiles)
		require.Equal(b, one[int64](b, `SELECT temp_bytes FROM pg_stat_database WHERE datname = current_database()`), r.TempBytes)
		require.Greater(b, r.TempBytes, 300*kB)
		require.GreaterOrEqual(b, r.Rollbacks, int64(7))
		require.Less(b, r.Rollbacks, int64(20))
		require.Greater(b, r.Commits, int64(10))
		require.EqualValues(b, 1, r.Deadlocks)
		require.InDelta(b, one[int64](b, `SELECT pg_database_size(current_database())`), r.Bytes, float64(mB))
		r = b.next(c).Database.Activity
		require.Zero(b, r.Deadlocks+r.TempBytes+r.TempFiles)
	})
}

// TestStateOfThePartitions: how many, until when, how large, and what is detached.
func TestStateOfThePartitions(t *testing.T) {
	versions(t, func(b *bed) {
		b.fill("2026-12", 2_000)
		b.exec(`ALTER TABLE audit_log DETACH PARTITION audit_log_2026_10;
			INSERT INTO audit_partition_event (partition_name, kind, state) VALUES ('audit_log_2026_10', 'drop', 'detached')`)
		c := b.collector()
		r := b.next(c).Database.Partitions
		of := func(sql string) int64 { return one[int64](b, sql) }
		require.Equal(b, Partitions{
			Count: 2, Detached: 1, ReadyUntil: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC),
			TableBytes:    of(`SELECT sum(pg_table_size(inhrelid))::bigint FROM pg_inherits WHERE inhparent = 'audit_log'::regclass`),
			IndexBytes:    of(`SELECT sum(pg_indexes_size(inhrelid))::bigint FROM pg_inherits WHERE inhparent = 'audit_log'::regclass`),
			DetachedBytes: of(`SELECT pg_total_relation_size('audit_log_2026_10')`),
			Biggest:       december, BiggestBytes: of(`SELECT pg_total_relation_size('audit_log_2026_12')`),
		}, *r)
		require.Greater(b, r.TableBytes, int64(100_000))

		// Who locks readers out of a partition costs the report its sizes, and no more.
		tx, err := b.pool.Begin(b.Context())
		require.NoError(b, err)
		_, err = tx.Exec(b.Context(), `LOCK TABLE audit_log_2026_12 IN ACCESS EXCLUSIVE MODE`)
		require.NoError(b, err)
		d := b.next(c).Database
		require.Nil(b, d.Partitions)
		require.NotNil(b, d.Tables)
		require.NotNil(b, d.WAL)
		require.Contains(b, fmt.Sprint(d.Unread), "{partitions ")
		require.Contains(b, fmt.Sprint(d.Unread), "55P03")
		require.NoError(b, tx.Rollback(b.Context()))
		require.NotNil(b, b.next(c).Database.Partitions)
	})
}

// TestWithoutPrivileges: what a user may not read is said to be missing, and the rest is there.
func TestWithoutPrivileges(t *testing.T) {
	versions(t, func(b *bed) {
		b.fill("2026-12", 50)
		b.exec(`DROP ROLE IF EXISTS nobody_special`)
		b.exec(`CREATE ROLE nobody_special LOGIN; GRANT SELECT ON audit_partition_event, audit_lane TO nobody_special`)
		b.Cleanup(func() {
			_, err := b.pool.Exec(context.WithoutCancel(b.Context()), `DROP OWNED BY nobody_special; DROP ROLE nobody_special`)
			require.NoError(b, err)
		})
		other := *b
		other.url = replaceUser(b.url, "nobody_special")
		pool := other.open()
		c := b.collector(func(o *Options) { o.DB = pool })
		b.fill("2026-12", 30)
		d := b.next(c).Database
		require.EqualValues(b, 80, d.Tables.LiveRows)
		require.NotNil(b, d.WAL)
		require.NotNil(b, d.Checkpoints)
		require.NotNil(b, d.Activity)
		require.NotNil(b, d.Indexes)
		require.Len(b, d.Unread, 2)
		require.Equal(b, "statements", d.Unread[0].Part)
		require.Equal(b, "optimizations", d.Unread[1].Part)
		require.Contains(b, d.Unread[1].Why, "42501")
		pool.Close()
	})
}

// TestOnlyReads: the report works where nothing can be written, on one connection, and through a pooler in transaction mode.
func TestOnlyReads(t *testing.T) {
	versions(t, func(b *bed) {
		for _, pool := range []string{"read only", "pooler"} {
			db := b.open("default_transaction_read_only", "on", "pool_max_conns", "1")
			if pool == "pooler" {
				other := *b
				other.url = testkit.OwnPgBouncer(b, b.url)
				db = other.open("default_query_exec_mode", "exec")
			}
			c := b.collector(func(o *Options) { o.DB = db })
			r := b.next(c)
			require.Len(b, r.Database.Unread, 1, "%s: %v", pool, r.Database.Unread)
			require.Equal(b, "statements", r.Database.Unread[0].Part)
			require.Contains(b, r.Database.Unread[0].Why, "CREATE EXTENSION")
			require.Empty(b, r.AdviceUnknown, "%s: the server's process is this machine's", pool)
			db.Close()
		}
	})
}

// TestWhereTheDatabaseIs: memory and cores are this machine's only where the server's process is.
func TestWhereTheDatabaseIs(t *testing.T) {
	for host, want := range map[string]bool{"127.0.0.1": true, "::1": true, "localhost": true, "/var/run/postgresql": true, "@abstract": true, "10.0.0.1": false, "db": false, "": false} {
		require.Equal(t, want, nearby(host), host)
	}
	require.False(t, isPostgres(os.Getpid()), "a process, and none of Postgres's")
	require.False(t, isPostgres(1<<30))
	m := thisMachine()
	require.Greater(t, m.MemoryBytes, 256*mB)
	require.Less(t, m.MemoryBytes, 1<<14*gB)
	require.Positive(t, m.Cores)
	versions(t, func(b *bed) {
		r := b.next(b.collector(func(o *Options) { o.Database = Machine{MemoryBytes: 64 * gB} }))
		require.Equal(b, "16GB", proposed(r.Advice, "shared_buffers"), "what the settings tell goes before")
		b.pool.Close()
	})
}

func proposed(all []Advice, setting string) string {
	for _, a := range all {
		if a.Setting == setting {
			return a.Proposed
		}
	}
	return ""
}

// TestSettings: units are what the server says they are.
func TestSettings(t *testing.T) {
	own(t, map[string]string{
		"shared_buffers": "40MB", "effective_cache_size": "3GB", "work_mem": "5MB", "maintenance_work_mem": "65MB", "max_wal_size": "2GB", "checkpoint_timeout": "7min",
		"checkpoint_completion_target": "0.5", "wal_compression": "pglz", "autovacuum_max_workers": "5", "autovacuum_vacuum_cost_delay": "-1", "vacuum_cost_delay": "7ms",
		"vacuum_cost_limit": "300", "random_page_cost": "2.5", "max_connections": "60", "superuser_reserved_connections": "4",
	}, func(b *bed) {
		var s *serverSettings
		require.NoError(b, readPart(b.Context(), b.pool, func(ctx context.Context, tx pgx.Tx) (err error) {
			s, err = readSettings(ctx, tx)
			return err
		}))
		slots := 0
		if one[bool](b, `SELECT current_setting('server_version_num')::int >= 180000`) {
			slots = 16
		}
		require.NotEmpty(b, s.WALCompressions)
		s.WALCompressions = nil
		require.Equal(b, Settings{
			SharedBuffers: 40 * mB, EffectiveCacheSize: 3 * gB, WorkMem: 5 * mB, MaintenanceWorkMem: 65 * mB, MaxWALSize: 2 * gB, CheckpointTimeoutSeconds: 420,
			CheckpointTarget: 0.5, WALCompression: "pglz", Autovacuum: true, TrackCounts: true, AutovacuumWorkers: 5, WorkerSlots: slots, CostDelayMillis: 7, CostLimit: 300,
			RandomPageCost: 2.5, SeqPageCost: 1, MaxConnections: 60, ReservedConnections: 4,
		}, s.Settings)
		require.True(b, s.here)
	})
}
