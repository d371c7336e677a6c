package store

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// bridgeLogger gives etcd a logger that writes to the process's own.
func bridgeLogger(logger *slog.Logger, hook *fatalHook) *zap.Logger {
	core := slogCore{logger: logger.With("component", "etcd")}
	options := []zap.Option{}
	if hook != nil {
		options = append(options, zap.WithFatalHook(hook), zap.WithPanicHook(hook))
	}
	return zap.New(core, options...)
}

// slogCore is a zapcore.Core over slog.
type slogCore struct{ logger *slog.Logger }

// level maps etcd's idea of importance to ours: what it calls information is
// a trace of its inner life, and most of its warnings are advice.
func level(l zapcore.Level) slog.Level {
	switch {
	case l <= zapcore.InfoLevel:
		return slog.LevelDebug
	case l == zapcore.WarnLevel:
		return slog.LevelInfo
	}
	return slog.LevelError
}

func (c slogCore) Enabled(l zapcore.Level) bool {
	return c.logger.Enabled(context.Background(), level(l))
}

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{logger: c.logger.With(attributes(fields)...)}
}

func (c slogCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

func (c slogCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	at := level(entry.Level)
	if tooEarly(entry, fields) {
		at = slog.LevelDebug
	}
	c.logger.Log(context.Background(), at, entry.Message, attributes(fields)...)
	return nil
}

// tooEarly tells the complaints that every first start on an empty folder
// brings. etcd decides the version of the cluster as soon as it leads, and wants
// to note it as its database's version (monitorStorageVersion in its
// server/etcdserver/server.go). For that it looks for the term of the first
// write-back of the database, which may be a second away. Some seconds later it
// tries again, and finds it; the version is of no use before a downgrade.
// These messages with any other error are passed on as they are.
func tooEarly(entry zapcore.Entry, fields []zapcore.Field) bool {
	missing := ""
	switch entry.Message {
	case "Failed to detect schema version":
		missing = "missing term information"
	case "failed to update storage version":
		missing = "cannot detect storage schema version: missing term information"
	default:
		return false
	}
	return slices.ContainsFunc(fields, func(field zapcore.Field) bool {
		err, ok := field.Interface.(error)
		return ok && err.Error() == missing
	})
}

func (slogCore) Sync() error { return nil }

func attributes(fields []zapcore.Field) []any {
	encoder := zapcore.NewMapObjectEncoder()
	for _, field := range fields {
		field.AddTo(encoder)
	}
	list := make([]any, 0, len(encoder.Fields))
	for key, value := range encoder.Fields {
		list = append(list, slog.Any(key, value))
	}
	return list
}

// OnWrite implements zapcore.CheckWriteHook for the levels Panic and Fatal.
// It never returns: what follows in etcd relies on the write that failed.
func (h *fatalHook) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	h.once.Do(func() {
		cause := []string{entry.Message}
		for _, field := range fields {
			if err, ok := field.Interface.(error); ok {
				cause = append(cause, err.Error())
			}
		}
		h.err = errors.New(strings.Join(cause, ": "))
		close(h.failed)
	})
	select {}
}
