{{- define "redbouncer.name" -}}
{{- if contains "redbouncer" .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-redbouncer" .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "redbouncer.selector" -}}
app.kubernetes.io/name: redbouncer
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "redbouncer.labels" -}}
{{ include "redbouncer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "redbouncer.secret" -}}
{{- if .Values.upstream.existingSecret -}}
{{ .Values.upstream.existingSecret }}
{{- else -}}
{{ include "redbouncer.name" . }}
{{- end -}}
{{- end -}}
