package main

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
)

// electorate starts workers that can lead, behind a pooler in transaction mode, and returns what leads.
func electorate(t *testing.T, databaseURL string, n int32, more settings) (workers []*process, leader func() *process) {
	t.Helper()
	broker, topic := testkit.Kafka(t), testkit.Name(t)
	broker.CreateTopic(t, topic, n, nil)
	s := workerSettings(broker, topic, testkit.OwnPgBouncer(t, databaseURL)).with(settings{"POSTGRES_PREPARED": "false", "MAINTENANCE_INTERVAL": "200ms"}).with(more)
	succeed(t, s.with(settings{"POSTGRES_URL": databaseURL}), "migrate", "up")
	for range n {
		workers = append(workers, start(t, s, "run"))
	}
	leader = func() (found *process) {
		eventually(t, "one leads", func() bool {
			all := leading(t, workers)
			if len(all) == 1 {
				found = all[0]
			}
			return len(all) == 1
		})
		return found
	}
	for _, w := range workers {
		eventually(t, "it has its lanes", func() bool { return w.metric(t, "lanes_owned") == 1 })
	}
	return workers, leader
}

// leading are the workers whose metrics say that they lead.
func leading(t *testing.T, workers []*process) (all []*process) {
	t.Helper()
	for _, w := range workers {
		if leads := w.metric(t, "leader"); leads == 1 {
			require.InDelta(t, time.Now().Unix(), w.metric(t, "leader_since_timestamp_seconds"), patience.Seconds())
			all = append(all, w)
		} else {
			require.Zero(t, leads)
		}
	}
	return all
}

// breach removes a partition, so that the leader has to make it again.
func breach(t *testing.T, databaseURL string) {
	t.Helper()
	statement(t, databaseURL, fmt.Sprintf("DROP TABLE audit_log_%s", time.Now().UTC().AddDate(0, 0, 1-time.Now().UTC().Day()).AddDate(0, 5, 0).Format("2006_01")))
}

// TestWorkersHandOver: a leader that is told to stop hands over at once, long before its lease ends, and those who don't lead know of the partitions
// too.
func TestWorkersHandOver(t *testing.T) {
	t.Parallel() // most of it waits
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			databaseURL := testkit.Postgres(t, version)
			workers, leader := electorate(t, databaseURL, 2, settings{"LEADER_LEASE": "1h"})
			first := leader()
			first.says(t, `"leading: .*"term":(1),`)
			first.stop(t)
			require.Contains(t, first.errs.String(), "leading no more: handed over")
			workers = slices.DeleteFunc(workers, func(w *process) bool { return w == first })
			eventually(t, "the other leads", func() bool { return len(leading(t, workers)) == 1 })
			workers[0].says(t, `"leading: .*"term":(2),`)

			breach(t, databaseURL)
			eventually(t, "it maintains the partitions", func() bool { return number(t, databaseURL, `SELECT count(*) FROM audit_log_partition_bounds()`) == 7 })
		})
	}
}

// TestLeaderFrozen: a leader that is stopped for longer than its lease is replaced. When it goes on it finds that out, and becomes a candidate.
func TestLeaderFrozen(t *testing.T) {
	t.Parallel() // most of it waits
	databaseURL := testkit.Postgres(t, 18)
	workers, leader := electorate(t, databaseURL, 2, settings{"LEADER_LEASE": "4s"})
	frozen := leader()
	other := workers[0]
	if other == frozen {
		other = workers[1]
	}
	require.NoError(t, frozen.cmd.Process.Signal(syscall.SIGSTOP))
	eventually(t, "the other leads", func() bool { return other.metric(t, "leader") == 1 })
	breach(t, databaseURL)
	eventually(t, "the other maintains the partitions", func() bool { return number(t, databaseURL, `SELECT count(*) FROM audit_log_partition_bounds()`) == 7 })

	require.NoError(t, frozen.cmd.Process.Signal(syscall.SIGCONT))
	frozen.says(t, `"leading no more",`)
	require.Same(t, other, leader())
	require.Equal(t, int64(8), number(t, databaseURL, `SELECT count(*) FROM audit_partition_event WHERE kind = 'create'`), "nothing was done twice")
	for _, w := range workers {
		eventually(t, "both know of the partitions", func() bool { return w.metric(t, "table_partitions") == 7 })
	}
	other.kill()
	eventually(t, "the first leads again", func() bool { return frozen.metric(t, "leader") == 1 })
	require.GreaterOrEqual(t, number(t, databaseURL, `SELECT term FROM audit_leader`), int64(3))
	frozen.stop(t)
}

// TestStartBesideWhatIsInTheWay: a worker begins where a running one would go on: without a partition that is for later.
func TestStartBesideWhatIsInTheWay(t *testing.T) {
	t.Parallel()
	broker, topic, databaseURL := testkit.Kafka(t), testkit.Name(t), testkit.Postgres(t, 18)
	broker.CreateTopic(t, topic, 1, nil)
	s := workerSettings(broker, topic, databaseURL)
	succeed(t, s.with(settings{"PARTITION_AHEAD": "1"}), "migrate", "up")
	statement(t, databaseURL, fmt.Sprintf(`CREATE TABLE audit_log_%s (a int)`, time.Now().UTC().AddDate(0, 0, 1-time.Now().UTC().Day()).AddDate(0, 3, 0).Format("2006_01")))
	w := start(t, s, "run")
	eventually(t, "it has its lane", func() bool { return w.metric(t, "lanes_owned") == 1 })

	// Without today's there is nothing to begin with.
	statement(t, databaseURL, `DO $$ DECLARE p text; BEGIN
		FOR p IN SELECT partition_name FROM audit_log_partition_bounds() LOOP EXECUTE 'ALTER TABLE audit_log DETACH PARTITION ' || p; END LOOP; END $$`)
	code, _, errs := execute(t, s, "run")
	require.Equal(t, exitFailed, code)
	require.Contains(t, errs, "is not a partition of audit_log; attach it, rename it or move it away")
}
