package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"auditsink/config"
	"auditsink/internal/fleet"
	"auditsink/metrics"
	"auditsink/partitions"
	"auditsink/sink"
)

// shortestInterval is how often status may redraw: each look asks the database.
const shortestInterval = 100 * time.Millisecond

func newStatusCommand() *cobra.Command {
	var watch, asJSON, report bool
	interval := 2 * time.Second
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how everything is: replicas, lanes, lag, rates, leader, partitions, quarantine, alerts",
		Long: `status shows how everything is: what is wrong first, then replicas, lanes, partitions, quarantine, gaps and alerts. Give it the settings of the workers.

The figures of all replicas come from Redis (AUDITSINK_REDIS_URL). Without it they are those of the worker at AUDITSINK_HTTP_ADDR alone, and all else is from Postgres.
What can't be read says why, and the rest is shown all the same. Exit code 1 where nothing can be read.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval < shortestInterval {
				return &usageError{fmt.Errorf("--interval is below %s", shortestInterval)}
			}
			if report && watch {
				return &usageError{errors.New("--report and --watch don't go together: a report is made every AUDITSINK_REPORT_INTERVAL")}
			}
			cfg, err := config.Load()
			if err != nil {
				return err
			}
			if report {
				performance, err := reportFromWorker(cmd.Context(), cfg)
				if err != nil {
					return err
				}
				return printReport(cmd.OutOrStdout(), performance, asJSON)
			}
			r, err := newStatusReader(cmd.Context(), cfg, watch)
			if err != nil {
				return err
			}
			defer r.close()
			out := cmd.OutOrStdout()
			if watch {
				return watchStatus(cmd.Context(), out, r, interval, asJSON)
			}
			s := r.read(cmd.Context())
			if asJSON {
				err = printJSON(out, s)
			} else {
				err = s.print(out)
			}
			if err == nil && s.nothing() {
				return errors.New("nothing could be read: neither from Postgres nor from Redis nor from a worker")
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "show it live until Ctrl-C")
	cmd.Flags().DurationVar(&interval, "interval", interval, "with --watch, the time between two looks")
	cmd.Flags().BoolVar(&report, "report", false, "print the performance report of the worker at AUDITSINK_HTTP_ADDR instead")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON; with --watch a line for each look")
	return cmd
}

// status is all that status tells. A part that couldn't be read has the reason as its Error.
type status struct {
	At         time.Time        `json:"at"`
	Group      string           `json:"consumer_group"`
	Health     metrics.Status   `json:"health"`
	Problems   []problem        `json:"problems"` // the worst first
	Leader     statusLeader     `json:"leader"`
	Totals     fleet.Totals     `json:"totals"` // of the replicas below
	Replicas   statusReplicas   `json:"replicas"`
	Lanes      statusLanes      `json:"lanes"`
	Partitions statusPartitions `json:"partitions"`
	Quarantine statusQuarantine `json:"quarantine"`
	Gaps       statusGaps       `json:"gaps"`
	Notes      []string         `json:"notes"` // on where it was read

	summary *fleet.Summary
	view    partitions.Survey // zero: the database didn't tell
}

// problem is something that somebody should know.
type problem struct {
	Severity metrics.Status `json:"severity"`
	Text     string         `json:"text"`
}

// Sources of parts.
const (
	fromPostgres = "postgres"
	fromRedis    = "redis"
	fromWorker   = "worker" // over HTTP
)

// statusLeader is who maintains the partitions.
type statusLeader struct {
	Source  string    `json:"source,omitempty"`
	Holder  string    `json:"holder"` // empty: nobody
	Since   time.Time `json:"since,omitzero"`
	Expired float64   `json:"expired_seconds"` // how long nobody has led; 0 while somebody does
	Error   string    `json:"error,omitempty"`
}

// statusReplicas are the replicas: all of them from Redis, or the one that answers over HTTP.
type statusReplicas struct {
	Source string          `json:"source,omitempty"`
	Items  []fleet.Figures `json:"items"`
	Error  string          `json:"error,omitempty"`
}

// statusLanes are the lanes of audit_lane and of replicas, by topic and partition number.
type statusLanes struct {
	Source string       `json:"source,omitempty"`
	Items  []statusLane `json:"items"`
	Error  string       `json:"error,omitempty"`
}

// statusLane is a lane. Its group is another than ours where others store in the database.
type statusLane struct {
	fleet.Lane
	Group    string `json:"consumer_group"`
	State    string `json:"state"`              // active, halted or unowned
	Owner    string `json:"owner"`              // as audit_lane has it
	Instance string `json:"instance,omitempty"` // the replica that says it has it
}

// The states of a lane beside those of audit_lane.
const (
	laneActive  = "active"
	laneHalted  = "halted"
	laneRetired = "retired"
	laneUnowned = "unowned" // no replica says it has it
)

// statusPartitions is how the table partitions are.
type statusPartitions struct {
	Source     string           `json:"source,omitempty"`
	Count      int              `json:"count"`
	ReadyUntil time.Time        `json:"ready_until,omitzero"`
	WaysOut    int              `json:"ways_out"` // partitions that are being removed
	Enforced   bool             `json:"retention_enforced"`
	NextDrop   *partitions.Fate `json:"next_drop,omitempty"`
	Error      string           `json:"error,omitempty"`
}

// statusQuarantine counts the quarantined records.
type statusQuarantine struct {
	Source string    `json:"source,omitempty"`
	At     time.Time `json:"at,omitzero"` // when they were counted
	sink.QuarantineTally
	Error string `json:"error,omitempty"`
}

// statusGaps counts the gaps.
type statusGaps struct {
	Source string          `json:"source,omitempty"`
	Items  []sink.GapTally `json:"items"`
	Error  string          `json:"error,omitempty"`
}

// nothing tells that no part could be read.
func (s *status) nothing() bool {
	return s.Leader.Source == "" && s.Replicas.Source == "" && s.Lanes.Source == "" && s.Partitions.Source == "" && s.Quarantine.Source == "" && s.Gaps.Source == ""
}
