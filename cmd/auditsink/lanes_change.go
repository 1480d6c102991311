package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/kafka"
	"auditsink/internal/postgres"
	"auditsink/sink"
)

func newLanesAcceptCommand() *cobra.Command {
	var reason string
	var all, asJSON bool
	c := &cobra.Command{
		Use:   "accept LANE… --reason TEXT",
		Short: "Let lanes that have halted go on",
		Long: `Let lanes that have halted go on, once the cause is mended. Workers take them up again by themselves.

A LANE is a lane's number, a topic, or TOPIC/PARTITION.

Where the topic was deleted and created again, its lanes are retired, and new ones
begin at the start of the new topic. Where the brokers lost records that were stored,
the lane is retired, and a new one begins where the log was cut. Of a topic that is gone,
the lanes are retired. What was stored stays.`,
		Args: lanesArgs(&all),
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeLanes(cmd, args, all, asJSON, reason, func(ctx context.Context, s *laneChange) error { return s.accept(ctx) })
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why (required): it goes on record")
	c.Flags().BoolVar(&all, "all", false, "all lanes that have halted")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newLanesResetCommand() *cobra.Command {
	var reason, to string
	var asJSON bool
	c := &cobra.Command{
		Use:   "reset LANE… --to earliest|latest|OFFSET --reason TEXT",
		Short: "Move lanes to another offset, on record",
		Long: `Move lanes, halted or not, to another offset. Workers follow by themselves.

A LANE is a lane's number, a topic, or TOPIC/PARTITION.

What a move forward passes over goes on record as a gap of kind skipped. A move back
over records that are stored is refused, since they would be stored twice: finding out
reads all of audit_log.`,
		Args: lanesArgs(new(bool)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if to == "" {
				return &usageError{errors.New("--to is missing: earliest, latest or an offset")}
			}
			if _, err := strconv.ParseUint(to, 10, 63); err != nil && to != "earliest" && to != "latest" {
				return &usageError{fmt.Errorf("--to %q is neither earliest, latest nor an offset", to)}
			}
			return changeLanes(cmd, args, false, asJSON, reason, func(ctx context.Context, s *laneChange) error { return s.reset(ctx, to) })
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why (required): it goes on record")
	c.Flags().StringVar(&to, "to", "", "earliest or latest of what the brokers have, or an offset (required)")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// lanesArgs requires lanes, unless all are meant.
func lanesArgs(all *bool) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if *all == (len(args) > 0) {
			return errors.New("name the lanes by number, topic or TOPIC/PARTITION (`auditsink lanes list`)")
		}
		return nil
	}
}

// laneChange is what lanes accept and reset work with.
type laneChange struct {
	pool   *postgres.Pool
	broker *kgo.Client
	op     sink.Operation
	// lanes are those chosen; siblings are all in use of the topics of those.
	lanes    []sink.LaneStatus
	siblings map[string][]sink.LaneStatus
	topics   map[string]topicLogs
	done     []laneOutcome
}

// topicLogs is what the brokers say of a topic.
type topicLogs struct {
	id  [16]byte
	err error
}

// laneOutcome is what became of a lane, for people and programs.
type laneOutcome struct {
	LaneID     int32  `json:"lane_id"`
	Topic      string `json:"topic"`
	Partition  int32  `json:"partition"`
	Was        int64  `json:"was_offset"`
	Retired    bool   `json:"retired,omitempty"`
	Successor  int32  `json:"successor,omitempty"`
	NextOffset int64  `json:"next_offset"`
}

func changeLanes(cmd *cobra.Command, args []string, all, asJSON bool, reason string, change func(context.Context, *laneChange) error) error {
	if strings.TrimSpace(reason) == "" {
		return &usageError{errors.New("--reason is missing: say why, for the record")}
	}
	cfg, err := config.Load(config.Kafka, config.Postgres)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	pool, err := openDatabase(ctx, cfg, cfg.PostgresURL)
	if err != nil {
		return err
	}
	defer pool.Close()
	opts, err := kafka.Options(cfg, zap.NewNop())
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("make the Kafka client: %w", err)
	}
	defer client.Close()
	s := &laneChange{pool: pool, broker: client, op: sink.Operation{Client: operator(), Reason: reason}}
	if err := s.choose(ctx, args, all); err != nil {
		return postgres.Explain(err)
	}
	s.ask(ctx)
	failed := change(ctx, s)
	return errors.Join(s.print(cmd.OutOrStdout(), asJSON), kafka.Explain(postgres.Explain(failed), cfg))
}

// choose finds the lanes that args name among those in use, or all that have halted.
func (s *laneChange) choose(ctx context.Context, args []string, all bool) error {
	known, err := sink.Lanes(ctx, s.pool)
	if err != nil {
		return err
	}
	known = slices.DeleteFunc(known, func(l sink.LaneStatus) bool { return l.State == "retired" })
	s.siblings = map[string][]sink.LaneStatus{}
	for _, l := range known {
		s.siblings[l.Topic] = append(s.siblings[l.Topic], l)
		if all && l.State == "halted" {
			s.lanes = append(s.lanes, l)
		}
	}
	for _, arg := range args {
		found := false
		for _, l := range known {
			if names(arg, l) && !slices.Contains(s.lanes, l) {
				s.lanes = append(s.lanes, l)
			}
			found = found || names(arg, l)
		}
		if !found {
			return fmt.Errorf("there is no lane %s in use: see `auditsink lanes list`", arg)
		}
	}
	return nil
}

// names tells whether an argument means a lane.
func names(arg string, l sink.LaneStatus) bool {
	return arg == strconv.Itoa(int(l.LaneID)) || arg == l.Topic || arg == fmt.Sprintf("%s/%d", l.Topic, l.Partition)
}

// goneAsks is how often in a row the brokers must not know a topic that is taken for gone.
const goneAsks = 5

// ask asks the brokers what they have of the lanes' topics.
func (s *laneChange) ask(ctx context.Context) {
	s.topics = map[string]topicLogs{}
	for _, lane := range s.lanes {
		if _, ok := s.topics[lane.Topic]; ok {
			continue
		}
		var topic topicLogs
		for range goneAsks { // a broker that has just started may not know its topics
			asking, cancel := context.WithTimeout(ctx, 30*time.Second)
			topic.id, _, topic.err = kafka.Logs(asking, s.broker, lane.Topic, map[int32]int32{})
			cancel()
			if !errors.Is(topic.err, kerr.UnknownTopicOrPartition) {
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
		s.topics[lane.Topic] = topic
	}
}

// logs asks for the logs of some lanes of a topic.
func (s *laneChange) logs(ctx context.Context, topic string, epochs map[int32]int32) (map[int32]sink.Log, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	_, found, err := kafka.Logs(ctx, s.broker, topic, epochs)
	logs := map[int32]sink.Log{}
	for partition, log := range found {
		logs[partition] = sink.Log{Start: log.Start, Known: log.Known()}
	}
	return logs, err
}

// accept does what it can, and tells what it couldn't.
func (s *laneChange) accept(ctx context.Context) error {
	begun := map[string]bool{}
	var failed []error
	for _, lane := range s.lanes {
		topic := s.topics[lane.Topic]
		gone := errors.Is(topic.err, kerr.UnknownTopicOrPartition)
		switch {
		case begun[lane.Topic]:
		case topic.err != nil && !gone:
			failed = append(failed, fmt.Errorf("lane %d (%s/%d): %w", lane.LaneID, lane.Topic, lane.Partition, topic.err))
		case gone || sink.TopicIDText(topic.id) != lane.TopicID:
			begun[lane.Topic] = true
			if err := s.acceptTopic(ctx, lane.Topic, topic.id, gone); err != nil {
				failed = append(failed, err)
			}
		case lane.State != "halted":
			failed = append(failed, fmt.Errorf("lane %d (%s/%d) has not halted: there is nothing to accept", lane.LaneID, lane.Topic, lane.Partition))
		default:
			logs, err := s.logs(ctx, lane.Topic, map[int32]int32{lane.Partition: lane.LeaderEpoch})
			var o sink.Outcome
			if err == nil {
				o, err = sink.Accept(ctx, s.pool, lane, logs[lane.Partition], s.op)
			}
			if err != nil {
				failed = append(failed, err)
				continue
			}
			s.note(lane, o)
		}
	}
	return errors.Join(failed...)
}

// acceptTopic begins with a topic that was made again, or ends with one that is gone.
func (s *laneChange) acceptTopic(ctx context.Context, topic string, id [16]byte, gone bool) error {
	logs := map[int32]sink.Log{}
	if !gone {
		var err error
		if logs, err = s.logs(ctx, topic, nil); err != nil {
			return err
		}
	}
	outcomes, err := sink.AcceptTopic(ctx, s.pool, s.siblings[topic], id, logs, s.op)
	for i, o := range outcomes {
		s.note(s.siblings[topic][i], o)
	}
	return err
}

func (s *laneChange) reset(ctx context.Context, to string) error {
	var failed []error
	for _, lane := range s.lanes {
		if err := s.resetOne(ctx, lane, to); err != nil {
			failed = append(failed, fmt.Errorf("lane %d (%s/%d): %w", lane.LaneID, lane.Topic, lane.Partition, err))
		}
	}
	return errors.Join(failed...)
}

func (s *laneChange) resetOne(ctx context.Context, lane sink.LaneStatus, to string) error {
	topic := s.topics[lane.Topic]
	switch {
	case topic.err != nil:
		return topic.err
	case sink.TopicIDText(topic.id) != lane.TopicID:
		return errors.New("the topic was deleted and created again since: see `auditsink lanes accept`")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Hour) // for the search of audit_log
	defer cancel()
	_, logs, err := kafka.Logs(ctx, s.broker, lane.Topic, map[int32]int32{lane.Partition: lane.LeaderEpoch})
	if err != nil {
		return err
	}
	log := logs[lane.Partition]
	if log.Known() < lane.NextOffset {
		return fmt.Errorf("the brokers lost records: the lane has stored up to offset %d, and their log is another one from %d on: see `auditsink lanes accept`", lane.NextOffset, log.Known())
	}
	at := log.End
	switch to {
	case "latest":
	case "earliest":
		at = log.Start
	default:
		if at, err = strconv.ParseInt(to, 10, 64); err != nil {
			return fmt.Errorf("read the offset: %w", err)
		}
		if at < log.Start || at > log.End {
			return fmt.Errorf("the brokers have the offsets from %d to %d, and %d isn't among them", log.Start, log.End, at)
		}
	}
	was, err := sink.Reset(ctx, s.pool, lane.LaneID, at, s.op)
	if err != nil {
		return err
	}
	lane.NextOffset = was
	s.note(lane, sink.Outcome{LaneID: lane.LaneID, NextOffset: at})
	return nil
}

func (s *laneChange) note(lane sink.LaneStatus, o sink.Outcome) {
	s.done = append(s.done, laneOutcome{lane.LaneID, lane.Topic, lane.Partition, lane.NextOffset, o.Retired, o.Successor, o.NextOffset})
}

// print tells what was done, also where something failed after it.
func (s *laneChange) print(out io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(out, slices.Concat([]laneOutcome{}, s.done))
	}
	for _, o := range s.done {
		line := fmt.Sprintf("lane %d (%s/%d) goes on at offset %d, and was at %d", o.LaneID, o.Topic, o.Partition, o.NextOffset, o.Was)
		switch {
		case o.Retired && o.Successor == 0:
			line = fmt.Sprintf("lane %d (%s/%d) is retired at offset %d: its topic has no such partition any more", o.LaneID, o.Topic, o.Partition, o.Was)
		case o.Retired:
			line = fmt.Sprintf("lane %d (%s/%d) is retired at offset %d; lane %d begins at offset %d", o.LaneID, o.Topic, o.Partition, o.Was, o.Successor, o.NextOffset)
		}
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(out, "%d lanes changed\n", len(s.done))
	return err
}
